"""A whole tuning run, from a folder with `spec.json` to the same folder with `result.json`.

`python -m sarto.engine.run FOLDER/spec.json` ends with 0 when a result was written, also for a fault of the user's data
or request, which is the result's `error`; any other code is a fault of the machinery, and the run may be tried again.
It stops at once when it is told to (SIGTERM) or when whoever started it is gone (end of standard input): everything it
writes is whole at every moment. Knows no HTTP, users or database.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from sarto.catalog import DIGEST_FILE
from sarto.engine.assessing import Assessing, measures
from sarto.engine.data.automatic import DataShape, choose
from sarto.engine.data.blocks import read_line
from sarto.engine.data.machine import measure
from sarto.engine.data.prepare import Limits, Prepared, check_usable, prepare
from sarto.engine.data.report import data_report
from sarto.engine.data.tokenizer import ChatTokenizer
from sarto.engine.evaluation.report import Report
from sarto.engine.families.convert import convert_hub
from sarto.engine.families.decoder import Decoder
from sarto.engine.pages import keep_pages
from sarto.engine.serving.certificate import certify
from sarto.engine.tuning.journal import Journal
from sarto.engine.tuning.keeper import Keeper
from sarto.engine.tuning.loop import best_checkpoint, peak_memory_bytes
from sarto.engine.tuning.rank import requests
from sarto.engine.tuning.session import Rows, Session
from sarto.engine.tuning.team import Team
from sarto.errors import FailedPrecondition, InvalidArgument, OutOfRange, ResourceExhausted, Unimplemented
from sarto.failpoints import around
from sarto.schema.base_shape import BaseShape
from sarto.schema.examples import parse_line
from sarto.schema.runs import (
    REPORT_FILE,
    BaseWeights,
    CheckpointRecord,
    DatasetRef,
    ParityCertificate,
    RunResult,
    RunSpec,
)

logger = logging.getLogger(__name__)
USER_FAULTS = (InvalidArgument, FailedPrecondition, OutOfRange, ResourceExhausted, Unimplemented)
"""Trying the same run again would end the same way."""
NO_MEMORY = ("can't allocate memory", "bad_alloc")
"""What torch says where Python would raise MemoryError."""
TOO_LARGE = (
    "The run needs more memory than this server lets one take: tune a smaller base or a smaller adapter, set the label"
    ' sarto-low-memory to "true", or have run_memory_bytes raised.'
)
STOPPED = 143
CERTIFIED_ROWS = 4
RESULT_FILE = "result.json"


@dataclass(frozen=True)
class Loaded:
    """A base that is in memory already; without a decoder where runs load that themselves."""

    base: BaseWeights
    tokenizer: ChatTokenizer
    decoder: Decoder | None


def main(arguments: list[str], loaded: Loaded | None = None) -> int:
    """`loaded` is taken if it is the base this run needs."""
    spec = RunSpec.model_validate_json(Path(arguments[0]).read_bytes())
    signal.signal(signal.SIGTERM, lambda *_: os._exit(STOPPED))
    threading.Thread(target=_watch_parent, daemon=True).start()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    keep_pages()
    torch.set_num_threads(spec.threads)
    started = time.monotonic()
    try:
        result = run(spec, loaded if loaded and loaded.base == spec.base else None)
    except USER_FAULTS as error:
        logger.info("run refused", extra={"job": spec.job, "fault": error.message})
        result = RunResult(error=error.to_status())
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(words in str(error) for words in NO_MEMORY):
            raise
        logger.warning("run out of memory", extra={"job": spec.job, "reason": str(error)})
        result = RunResult(error=ResourceExhausted(TOO_LARGE).to_status())
    seconds = time.monotonic() - started
    result = result.model_copy(update={"peak_memory_bytes": peak_memory_bytes(), "wall_seconds": round(seconds, 3)})
    _write_whole(Path(spec.run_folder) / RESULT_FILE, result.model_dump_json(indent=1))
    return 0


def run(spec: RunSpec, loaded: Loaded | None = None) -> RunResult:
    """Prepare the data, tune, keep the checkpoints. Raises one of USER_FAULTS for what the user can mend."""
    folder = Path(spec.run_folder)
    resume = Path(spec.resume_folder) if spec.resume_folder else None
    journal = Journal(folder, resume / f"history-{spec.epoch}.jsonl" if resume else None)
    team = Team(count=spec.ranks)
    try:
        journal.say("phase", phase="PROCESSING_DATASET")
        if spec.base_source and not (Path(spec.base.folder) / DIGEST_FILE).exists():
            convert_hub(Path(spec.base_source), Path(spec.base.folder))
        tokenizer = loaded.tokenizer if loaded else ChatTokenizer.load(Path(spec.base.folder))
        decoder = loaded.decoder if loaded else None
        training = _prepare(spec, spec.training_dataset, tokenizer, spec.max_training_examples, "training")
        validation = None
        if spec.validation_dataset is not None:
            most = spec.max_validation_examples
            validation = _prepare(spec, spec.validation_dataset, tokenizer, most, "validation")
        shape = BaseShape.load(spec.base.folder, spec.base.quantisation)
        parameters = choose(DataShape.of(training.store), spec.parameters, shape.parameters, threads=spec.threads)
        stats = training.stats(parameters.total_steps)
        journal.say("data", data=stats)
        about_data = data_report(
            training, validation, spec.base, shape, spec.parameters,
            max_tokens=spec.max_tokens_per_example, machine=measure(spec.threads),
        )  # fmt: skip
        _write_whole(folder / REPORT_FILE, json.dumps(about_data, ensure_ascii=False))
        check_usable(training, validation)
        team.start(requests(spec, parameters, training.store, validation.store if validation else None))
        session = Session(
            spec, parameters, Rows.of(training.store), Rows.of(validation.store) if validation else None, decoder, team
        )
        journal.say("parameters", parameters=session.parameters)
        journal.say("phase", phase="TUNING")
        keeper = Keeper(
            folder, resume, session.fingerprint(), spec.resume_seconds, base_name=spec.base.name,
            certify=_certifier(spec, session, validation or training),
        )  # fmt: skip
        assessing = _assessing(spec, session, journal)
        session.tune(journal, keeper, partial(_assess, assessing, journal) if assessing else None)
        journal.say("phase", phase="POST_PROCESSING")
        report = assessing.finish(keeper.checkpoints) if assessing else None
        best, reason = _best(report, keeper)
        return RunResult(
            checkpoints=keeper.checkpoints,
            has_report=report is not None,
            best_checkpoint_id=best,
            best_reason=reason,
            data=stats,
            parameters=session.parameters,
            report_file=REPORT_FILE,
        )
    finally:
        team.close()
        journal.close()


def _prepare(spec: RunSpec, dataset: DatasetRef, tokenizer: ChatTokenizer, max_examples: int, role: str) -> Prepared:
    """However many rows cannot be used: the report on them comes first. Whoever pinned the file allowed its size."""
    limits = Limits(max_bytes=dataset.size_bytes, max_examples=max_examples, max_dropped_share=1.0, role=role)
    return prepare(
        dataset, tokenizer, max_tokens=spec.max_tokens_per_example, cache_folder=spec.cache_folder,
        data_format=spec.data_format, limits=limits, processes=spec.threads,
    )  # fmt: skip


def _assessing(spec: RunSpec, session: Session, journal: Journal) -> Assessing | None:
    if spec.evaluation is None or spec.validation_dataset is None:
        return None
    if session.decoder.is_sharded:  # no one device holds the base that answers
        spec = spec.model_copy(update={"device": "cpu"})
    return Assessing(spec, session.base_losses, session.decoder, lambda words: journal.say("note", message=words))


def _assess(assessing: Assessing, journal: Journal, record: CheckpointRecord) -> None:
    journal.assessment(assessing.after(record))


def _best(report: Report | None, keeper: Keeper) -> tuple[str | None, str]:
    """The report's verdict where there is one, else by loss alone."""
    if report is None or report.best is None:
        return best_checkpoint(keeper.checkpoints)
    best = next(record for record in keeper.checkpoints if measures(record).name == report.best.name)
    return best.checkpoint_id, f"{report.best.evidence}. Rule: {report.best.rule}"


def _certifier(spec: RunSpec, session: Session, held_out: Prepared) -> Callable[[Path], ParityCertificate]:
    """A few rows, none of the longer half: they prove the path, not the model."""
    store = held_out.store
    short = np.flatnonzero(store.lengths <= np.median(store.lengths))[:CERTIFIED_ROWS]
    rows = []
    for line in dict.fromkeys(store.line(int(index)) for index in short):
        raw = read_line(Path(held_out.dataset.path), line, Limits().max_line_bytes)
        assert raw is not None
        rows.append(parse_line(raw, line, data_format=spec.data_format))

    def certify_adapter(folder: Path) -> ParityCertificate:
        return certify(
            spec.base,
            folder,
            rows,
            session.logits,
            dtype=session.dtype,
            device=session.serving_device,
            int8=spec.serve_int8,
            lent=session.decoder,
        )

    return certify_adapter


def _watch_parent() -> None:
    """Standard input is a pipe that only the parent holds open."""
    while os.read(0, 1):
        pass
    os._exit(STOPPED)


def _write_whole(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    with around("rename"):
        partial.replace(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
