"""What an evaluation costs beside the answers it is about: 500 rows answered, and the same answered, scored by the
documented metrics and put into the standard report, in turn, at the same concurrency.

Then the memory of a run that evaluates: the base as training has it, with a second one loaded for serving, and lent to
serving. Prints seconds, processor seconds and the ratio with its bar; `--json` one object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from processor import show_processor
from sarto.catalog import Catalog
from sarto.contract.common import BaseWeights
from sarto.conversations.examples import Example, Turn
from sarto.engine.evaluation.answers import Answer, save_answers
from sarto.engine.evaluation.generate import Generate, spread
from sarto.engine.evaluation.job_evaluation import CheckpointMeasures, JobEvaluation, evaluate_checkpoint, report_job
from sarto.engine.evaluation.rows import EvaluationRow, row_from_example
from sarto.engine.models.load import load_base
from sarto.engine.ops.select import choose_operations, native_dtype
from sarto.engine.programs.local_model import asking
from sarto.engine.serving.engine import Engine, EngineOptions
from sarto.schema.evaluation import EvaluationConfig
from sarto.schema.generation import GenerateContentRequest, GenerateContentResponse, GenerationConfig

BAR = 2.0
CONCURRENCY = 32
WORDS = (
    "kettle lamp router tent fryer pump mat grinder parcel invoice refund colour size Tuesday broken late blue".split()
)
CONFIG = EvaluationConfig.read({
    "metrics": [
        {"exactMatchSpec": {}}, {"bleuSpec": {"useEffectiveOrder": True}}, {"rougeSpec": {"rougeType": "rougeLsum"}},
        {"predefinedMetricSpec": {"metricSpecName": "chrf"}},
    ],
})  # fmt: skip


def make_rows(count: int, seed: int) -> list[EvaluationRow]:
    """Questions and answers that no other pass has, so that no prefix is known already."""
    chance = random.Random(seed)
    rows = []
    for line in range(1, count + 1):
        words = [chance.choice(WORDS) for _ in range(40)]
        question = Example([Turn("user", f"Ticket {seed}-{line}: {' '.join(words[:24])}?")], [], line, "gemini")
        rows.append(row_from_example(question, " ".join(words[24:])))
    return rows


def generation_seconds(engine: Engine, base: BaseWeights, given: argparse.Namespace, seed: int) -> tuple[float, float]:
    """The rows answered, and nothing else."""
    rows, generate = make_rows(given.rows, seed), asking(engine, base)
    config = GenerationConfig(temperature=0.0, max_output_tokens=given.new)

    async def answer(row: EvaluationRow) -> GenerateContentResponse:
        return await generate(row.request.model_copy(update={"generation_config": config}))

    began, processor = time.perf_counter(), time.process_time()
    asyncio.run(spread(rows, answer, CONCURRENCY))
    return time.perf_counter() - began, time.process_time() - processor


async def at_once(_: GenerateContentRequest) -> GenerateContentResponse:
    """An answer that costs nothing, so that what is left is scoring and the report."""
    parts = [{"text": " ".join(WORDS)}]
    return GenerateContentResponse.read({"candidates": [{"content": {"parts": parts}, "finishReason": "STOP"}]})


def evaluation_seconds(generate: Generate, given: argparse.Namespace, seed: int) -> tuple[float, float]:
    """As many rows as a job evaluates a checkpoint, with four metrics, files and the report. The base has answered
    already, which it does once a job."""
    rows = make_rows(given.rows, seed)
    with tempfile.TemporaryDirectory() as folder:
        job = JobEvaluation(
            "benchmark", Path(folder), rows, generate, CONFIG, concurrency=CONCURRENCY,
            max_output_tokens=given.new,
        )  # fmt: skip
        save_answers(job.folder / "answers" / "base.jsonl", [Answer(row.line, row.reference or "") for row in rows])
        checkpoint = CheckpointMeasures("1", 1, 1)
        began, processor = time.perf_counter(), time.process_time()
        run = asyncio.run(evaluate_checkpoint(job, checkpoint, generate))
        report = asyncio.run(report_job(job, [checkpoint]))
        seconds = time.perf_counter() - began, time.process_time() - processor
    assert run is not None and run.error is None and report is not None and report.rows == given.rows
    return seconds


def memory_bytes(base: BaseWeights, how: str) -> int:
    """Memory of this process while it serves one answer beside a training decoder."""
    decoder = load_base(base, native_dtype(torch.device("cpu")), "cpu")
    decoder.ops = choose_operations(torch.device("cpu"))
    decoder.leave_files()
    engine = Engine(EngineOptions(threads=1, cache_bytes=64 << 20))
    if how == "lent":
        engine.lend(base, decoder)
    if how != "none":
        row = make_rows(1, 1)[0]
        config = GenerationConfig(temperature=0.0, max_output_tokens=4)
        asyncio.run(asking(engine, base)(row.request.model_copy(update={"generation_config": config})))
    found = resident_bytes()
    engine.give_back(base)
    engine.close()
    return found


def resident_bytes() -> int:
    """Pages of this process that are in memory, files' included."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default="smollm2-135m-instruct")
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--new", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    given = parser.parse_args()
    show_processor()
    catalog = Catalog.load()
    base = catalog.base(catalog.weights[given.base])
    if given.memory:
        print(memory_bytes(base, given.memory))
        return
    engine = Engine(EngineOptions(threads=given.threads))
    generation_seconds(engine, base, argparse.Namespace(rows=8, new=4), 0)
    rounds = [
        (
            generation_seconds(engine, base, given, 2 * number + 1),
            evaluation_seconds(asking(engine, base), given, 2 * number + 2),
        )
        for number in range(given.rounds)
    ]
    engine.close()
    found: dict[str, Any] = {"rows": given.rows, "tokens": given.new, "concurrency": CONCURRENCY}
    for index, clock in enumerate(("seconds", "processor seconds")):
        plain, whole = (median(one[part][index] for one in rounds) for part in (0, 1))
        found[clock] = {"generation": round(plain, 2), "evaluation": round(whole, 2), "ratio": round(whole / plain, 3)}
    found["scoring alone"] = round(evaluation_seconds(at_once, given, 0)[1], 2)
    for how in ("none", "own", "lent"):
        command = [sys.executable, __file__, "--base", given.base, "--memory", how]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[f"memory, {how}"] = int(done.stdout.split()[-1]) >> 20
    if given.json:
        print(json.dumps(found))
        return
    for clock in ("seconds", "processor seconds"):
        times = found[clock]
        ratio = f"ratio {times['ratio']} (bar {BAR})"
        print(f"{clock}: {times['generation']} answered, {times['evaluation']} evaluated, {ratio}")
    print(f"processor seconds of scoring and report alone: {found['scoring alone']}")
    memory = {how: found[f"memory, {how}"] for how in ("none", "own", "lent")}
    print("MB resident: training {none}, a second base {own}, the same one lent {lent}".format(**memory))


if __name__ == "__main__":
    main()
