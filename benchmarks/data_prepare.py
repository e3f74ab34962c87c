"""Preparing a dataset: ours (every row validated, rendered, tokenised, masked, stored and reported) against a plain
`datasets.map` with the reference tokenizer (rendered and tokenised only), on the same file in one run.

The rows are made here: words drawn from a vocabulary of 300,000 by Zipf's law as it is found in large corpora (exponent
1 for the first thousands, near 2 behind them), so that new words keep coming as they do in real text, with numbers and
punctuation; about 150 tokens a row. The peer lives in an environment of its own, made on
the first run. Prints rows per second, resident memory and the ratio; with `--processor-seconds` rates are per processor
second of all processes, which other load hardly moves. `--parts` measures ours again without template plans and without
the word table, so that what each brings is known.

Then the same rows as CSV and Parquet: `sarto data convert` against `datasets` (load, map, to_json) to the same JSON
lines; `--conversions` for this part alone.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from pyarrow import parquet

from processor import show_processor
from sarto.catalog import Catalog

VOCABULARY, KERNEL, TAIL = 300_000, 8_000, 1.9
SYLLABLES = "ba be bi bo da de di do fa ge gi ka ke ki la le li lo ma me mi mo na ne ni no pa pe ra re ri ro sa se si so ta te ti to va ve wi za".split()  # noqa: E501
COMMON = "the of and to in a is that for it as was with be by on not he his but at are this have from or had an they which one you were all her she there would their we him been has when who will no more if out so up said what its about than into them can only other time new some could these two may first then do".split()  # noqa: E501
PEER_PACKAGES = ["datasets==4.4.1", "transformers==5.23.0", "jinja2"]
PEER = """
import json, sys, time
from datasets import load_dataset
from transformers import PreTrainedTokenizerFast
folder, path, processes, cache = sys.argv[1:]
tokenizer = PreTrainedTokenizerFast(tokenizer_file=folder + "/tokenizer.json")
tokenizer.chat_template = open(folder + "/chat_template.jinja").read()
def prepare(batch):
    texts = []
    for contents in batch["contents"]:
        turns = [{"role": "assistant" if c["role"] == "model" else "user", "content": c["parts"][0]["text"]} for c in contents]
        texts.append(tokenizer.apply_chat_template(turns, tokenize=False))
    return {"input_ids": tokenizer(texts, add_special_tokens=False)["input_ids"]}
started = time.perf_counter()
rows = load_dataset("json", data_files=path, split="train", cache_dir=cache)
rows = rows.map(prepare, batched=True, num_proc=int(processes), remove_columns=rows.column_names)
print(json.dumps({"rows": len(rows), "seconds": time.perf_counter() - started}))
"""  # noqa: E501
OURS = """
import json, resource, sys, time
from pathlib import Path
from sarto.engine.dataset_report.forecast import BaseShape
from sarto.engine.dataset.prepare import DatasetLimits, prepare
from sarto.engine.dataset_report.data_report import data_report
from sarto.engine.rendering.tokenizer import ChatTokenizer
from sarto.contract.tuning_run import BaseWeights, DatasetRef, TuningParameters
folder, path, processes, cache = sys.argv[1:]
started = time.perf_counter()
tokenizer = ChatTokenizer.load(folder)
dataset = DatasetRef(uri="gs://bench/train.jsonl", path=path, size_bytes=Path(path).stat().st_size)
ready = prepare(dataset, tokenizer, max_tokens=8192, cache_folder=cache, processes=int(processes),
                limits=DatasetLimits(max_bytes=1 << 40))
prepared = time.perf_counter() - started
report = data_report(ready, None, BaseWeights(name="base", folder=folder, digest=""), BaseShape.load(folder),
                     TuningParameters(rank=8, alpha=16), max_tokens=8192)
seconds = time.perf_counter() - started
print(json.dumps({"rows": len(ready.store), "seconds": seconds, "prepare_seconds": prepared,
                  "tokens_per_row": ready.store.token_count / len(ready.store), "dropped": len(ready.faults),
                  "repeated": report["duplicates"]["exactCount"]}))
"""
CONVERTED = {"csv": "rows.csv", "parquet": "rows.parquet"}
CONVERT_PEER = """
import json, sys, time
from datasets import load_dataset
kind, path, target, processes, cache = sys.argv[1:]
def prepare(batch):
    pairs = zip(batch["question"], batch["answer"])
    return {"contents": [[{"role": "user", "parts": [{"text": q}]}, {"role": "model", "parts": [{"text": a}]}] for q, a in pairs]}
started = time.perf_counter()
rows = load_dataset(kind, data_files=path, split="train", cache_dir=cache)
rows = rows.map(prepare, batched=True, num_proc=int(processes), remove_columns=rows.column_names)
rows.to_json(target, num_proc=int(processes))
print(json.dumps({"rows": len(rows), "seconds": time.perf_counter() - started}))
"""  # noqa: E501
CONVERT_OURS = """
import json, sys, time
from pathlib import Path
from sarto.cli.datasets.produce import produce
from sarto.conversations.convert.files import find_files
from sarto.conversations.convert.guess import guess, read_sample
path, target = sys.argv[2:4]
started = time.perf_counter()
files = find_files([path])
report = produce(files, guess(read_sample(files, "utf-8")).mapping, Path(target), Path(target + ".validation"))
print(json.dumps({"rows": report.training, "seconds": time.perf_counter() - started}))
"""


WITHOUT = {
    "template plans": "import sarto.engine.rendering.render as module; module.make_plan = lambda *_: None",
    "word table": """
import sarto.engine.rendering.word_table as module
def encode_texts(self, texts):
    rows = self._encode(texts)
    tokens = module.np.concatenate([module.np.asarray(row, dtype="<u4") for row in rows] or [module.np.zeros(0, "<u4")])
    return tokens, module.np.array([len(row) for row in rows], dtype=module.np.int64)
module.WordTable.encode_texts = encode_texts
""",
}
"""Python run at the start of each of our processes that takes one part away."""


def make_rows(path: Path, count: int) -> None:
    """Rows of one question and one answer, the same for everyone who runs this."""
    generator = np.random.default_rng(11)
    made = ["".join(generator.choice(SYLLABLES, 2 + min(3, index // 60_000 + 1))) for index in range(VOCABULARY)]
    words = np.array(COMMON + made[len(COMMON) :], dtype=object)
    ranks = np.arange(VOCABULARY) + 2.7
    weights = np.where(ranks < KERNEL, 1 / ranks, KERNEL ** (TAIL - 1) / ranks**TAIL)
    share = np.cumsum(weights / weights.sum())
    with path.open("wb") as file:
        for first in range(0, count, 10_000):
            rows = min(10_000, count - first)
            lengths = generator.integers(24, 90, rows)
            drawn = words[np.searchsorted(share, generator.random(int(lengths.sum())))].tolist()
            at = 0
            for number, length in enumerate(lengths.tolist()):
                picked = drawn[at : at + length]
                at += length
                picked[length // 3] += ","
                picked[length // 2] = f"{(first + number) * 7919 % 10_000}."
                cut = length * 4 // 5
                turns = (("user", " ".join(picked[:cut]) + "?"), ("model", " ".join(picked[cut:]) + "."))
                contents = [{"role": role, "parts": [{"text": text}]} for role, text in turns]
                file.write(json.dumps({"contents": contents}).encode() + b"\n")


def make_tables(rows: Path, folder: Path) -> None:
    """The same questions and answers as CSV and as Parquet."""
    pairs: dict[str, list[str]] = {"question": [], "answer": []}
    with rows.open("rb") as file:
        for line in file:
            for turn, column in zip(json.loads(line)["contents"], pairs.values(), strict=True):
                column.append(turn["parts"][0]["text"])
    with (folder / CONVERTED["csv"]).open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([list(pairs), *zip(*pairs.values(), strict=True)])
    parquet.write_table(pyarrow.table(pairs), folder / CONVERTED["parquet"])


def compare_conversions(rows: Path, given: argparse.Namespace) -> None:
    """Tables to JSON lines of conversations: `sarto data convert` in one process, `datasets` in as many as given."""
    make_tables(rows, given.work)
    for kind, name in CONVERTED.items():
        runs = {}
        for who, python, program in (
            ("ours", Path(sys.executable), CONVERT_OURS),
            ("datasets", peer_python(given.work / "venv"), CONVERT_PEER),
        ):
            target, cache = given.work / f"{who}.jsonl", given.work / "cache" / f"{who}-{kind}"
            arguments = [kind, str(given.work / name), str(target), str(given.processes), str(cache)]
            runs[who] = measured(python, program, arguments)
            print(f"{kind} by {who}: {rate(runs[who], given):,.0f} rows/s, peak {runs[who]['peak_mib']:,} MiB")
        made = [[json.loads(line)["contents"] for line in (given.work / f"{who}.jsonl").open("rb")] for who in runs]
        assert made[0] == made[1], "the two wrote different rows"
        print(f"{kind}: ratio {rate(runs['ours'], given) / rate(runs['datasets'], given):.2f} (bar 4)")


def peer_python(folder: Path) -> Path:
    """An environment with the peer's packages."""
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *PEER_PACKAGES], check=True)
        (folder / "ready").touch()
    return python


def without(part: str, work: Path) -> dict[str, str]:
    """The environment in which our processes lack a part: Python imports `sitecustomize` at its start."""
    folder = work / "without"
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(WITHOUT[part])
    return {"PYTHONPATH": str(folder)}


def measured(
    python: Path | str, program: str, arguments: list[str], environment: dict[str, str] | None = None
) -> dict[str, Any]:
    """Run a program in a process of its own: what it prints, its processor seconds and the peak of its resident memory,
    its children's included (memory that processes share is counted once)."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [str(python), "-c", program, *arguments]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **(environment or {})})
    peak = [0]
    watcher = threading.Thread(target=_watch, args=(child, peak))
    watcher.start()
    output, _ = child.communicate()
    watcher.join()
    if child.returncode:
        raise SystemExit(f"a measured program ended with {child.returncode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    found: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
    found["processor_seconds"] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    found["peak_mib"] = round(peak[0] / 1024)
    return found


def _watch(child: subprocess.Popen[str], peak: list[int]) -> None:
    while child.poll() is None:
        peak[0] = max(peak[0], sum(_proportional_kib(process) for process in _family(child.pid)))
        time.sleep(0.1)


def _family(process: int) -> list[int]:
    children = Path(f"/proc/{process}/task/{process}/children")
    try:
        return [process, *(each for child in children.read_text().split() for each in _family(int(child)))]
    except OSError:
        return []


def _proportional_kib(process: int) -> int:
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--peer-rows", type=int, default=200_000, help="the peer gets the first rows of the same file")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--base", default="smollm2-135m-instruct")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "sarto-bench-data")
    parser.add_argument("--processor-seconds", action="store_true")
    parser.add_argument("--parts", action="store_true", help="ours without single parts too")
    parser.add_argument("--conversions", action="store_true", help="only tables to JSON lines, of the peer's rows")
    given = parser.parse_args()
    show_processor()
    given.work.mkdir(parents=True, exist_ok=True)
    data, peer_data = given.work / f"{given.rows}.jsonl", given.work / f"{given.peer_rows}-first.jsonl"
    if not data.exists():
        partial = data.with_suffix(".partial")
        make_rows(partial, given.rows)
        partial.rename(data)
    with data.open("rb") as source, peer_data.open("wb") as target:
        target.writelines(line for _, line in zip(range(given.peer_rows), source, strict=False))
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    if not given.conversions:
        compare_preparations(data, peer_data, given)
    shutil.rmtree(given.work / "cache", ignore_errors=True)
    compare_conversions(peer_data, given)
    shutil.rmtree(given.work / "cache", ignore_errors=True)


def compare_preparations(data: Path, peer_data: Path, given: argparse.Namespace) -> None:
    """JSON lines to tokens."""
    catalog = Catalog.load()
    folder = str(catalog.folder(catalog.weights[given.base]))
    cache = given.work / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    arguments = [str(given.processes), str(cache / "ours")]
    ours = measured(sys.executable, OURS, [folder, str(data), *arguments])
    for part in WITHOUT if given.parts else ():
        shutil.rmtree(cache / "ours", ignore_errors=True)
        run = measured(sys.executable, OURS, [folder, str(peer_data), *arguments], without(part, given.work))
        print(f"without {part}: {rate(run, given):,.0f} rows/s")
    peer = measured(
        peer_python(given.work / "venv"), PEER, [folder, str(peer_data), *arguments[:1], str(cache / "peer")]
    )
    for name, run in (("ours", ours), ("datasets.map", peer)):
        print(f"{name}: {rate(run, given):,.0f} rows/s, peak {run['peak_mib']:,} MiB, {run}")
    ratio, ours_rate = rate(ours, given) / rate(peer, given), rate(ours, given)
    print(f"ratio: {ratio:.2f} (bar 3), {ours_rate:,.0f} rows/s (bar 30,000), {ours['peak_mib']} MiB (bar 1,024)")


def rate(run: dict[str, Any], options: argparse.Namespace) -> float:
    """Rows of a run per second, or per processor second."""
    seconds: float = run["processor_seconds" if options.processor_seconds else "seconds"]
    return float(run["rows"]) / seconds


if __name__ == "__main__":
    main()
