"""A whole tuning run, from a folder with `spec.json` to the same folder with `result.json`.

`python -m sarto.engine.programs.tune FOLDER/spec.json PLACE=FOLDER…` ends with 0 when a result was written, also for a
fault of the user's data or request, which is the result's `error`. Any other code is a fault of the machine, and the
run may be retried. It stops at once on SIGTERM, or when its parent ends (end of standard input): every file that it
writes is whole at any moment. Knows no HTTP, users or database.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sarto.contract.base_shape import BaseShape
from sarto.contract.common import BaseWeights
from sarto.contract.programs import read_spec
from sarto.contract.run_folder import PAST_RUN, REPORT_FILE, RESULT_FILE
from sarto.contract.tuning_run import CheckpointRecord, ChosenParameters, PastRun, Remedy, RunResult, RunSpec
from sarto.engine.dataset.prepare import check_usable
from sarto.engine.dataset_report.data_report import data_report
from sarto.engine.host_memory import ShortOfMemory, keep_pages
from sarto.engine.models.decoder import Decoder
from sarto.engine.programs.checkpoint_certificate import certifier
from sarto.engine.programs.checkpoint_evaluation import CheckpointEvaluation, best_of
from sarto.engine.programs.rewarded_run import RewardedRun, best_reward
from sarto.engine.programs.run_data import RunData, read_data
from sarto.engine.programs.run_parameters import choose_parameters, machine_of
from sarto.engine.rendering.tokenizer import ChatTokenizer
from sarto.engine.tuning.checkpointing import Checkpointing
from sarto.engine.tuning.loop import peak_memory_bytes
from sarto.engine.tuning.methods import method_of
from sarto.engine.tuning.progress_log import ProgressLog
from sarto.engine.tuning.rank_process import requests
from sarto.engine.tuning.ranks import Ranks
from sarto.engine.tuning.session import Session, TokenisedDataset
from sarto.engine.weights.convert import convert_hub, is_converted
from sarto.errors import FailedPrecondition, InvalidArgument, OutOfRange, ResourceExhausted, Unimplemented
from sarto.system.files import write_whole
from sarto.system.process import STOPPED, end_with_parent

logger = logging.getLogger(__name__)
USER_FAULTS = (InvalidArgument, FailedPrecondition, OutOfRange, ResourceExhausted, Unimplemented)
"""Faults that would occur again in a second run."""
NO_MEMORY = ("can't allocate memory", "bad_alloc")
"""Texts of torch's errors for missing memory, where Python would raise MemoryError."""
TOO_LARGE = ResourceExhausted("The run needs more memory than this server allows a run.")
NOTHING_LEARNED = "beta is 0: the loss does not depend on the model, so nothing is learned."


@dataclass(frozen=True)
class LoadedBase:
    """A base that is already in memory; without a decoder if each run loads it."""

    base: BaseWeights
    tokenizer: ChatTokenizer
    decoder: Decoder | None


def main(arguments: list[str], loaded: LoadedBase | None = None) -> int:
    """Run the program. `loaded` is used if it is the base of this run."""
    spec = read_spec(RunSpec, arguments)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(STOPPED))
    end_with_parent()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    keep_pages()
    torch.set_num_threads(spec.threads)
    started = time.monotonic()
    try:
        result = run(spec, loaded if loaded and loaded.base == spec.base else None)
    except USER_FAULTS as error:
        logger.info("run refused", extra={"job": spec.job, "fault": error.message})
        result = RunResult(error=error.to_status(), remedies=error.remedies if isinstance(error, ShortOfMemory) else [])
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(words in str(error) for words in NO_MEMORY):
            raise
        logger.warning("run out of memory", extra={"job": spec.job, "reason": str(error)})
        result = RunResult(error=TOO_LARGE.to_status(), remedies=_remedies(spec))
    seconds = time.monotonic() - started
    result = result.model_copy(update={"peak_memory_bytes": peak_memory_bytes(), "wall_seconds": round(seconds, 3)})
    write_whole(Path(spec.run_folder) / RESULT_FILE, result.model_dump_json(indent=1).encode())
    return 0


def run(spec: RunSpec, loaded: LoadedBase | None = None) -> RunResult:
    """Prepare the data, tune, keep the checkpoints. Raises one of USER_FAULTS for faults that the user can correct."""
    method, folder = method_of(spec), Path(spec.run_folder)
    resume = Path(spec.resume_folder) if spec.resume_folder else None
    log = ProgressLog(folder, resume / f"history-{spec.epoch}.jsonl" if resume else None, method)
    ranks = Ranks(count=spec.ranks)
    try:
        log.say("phase", phase="PROCESSING_DATASET")
        if spec.base_source and not is_converted(Path(spec.base.folder)):
            convert_hub(Path(spec.base_source), Path(spec.base.folder))
        tokenizer = loaded.tokenizer if loaded else ChatTokenizer.load(Path(spec.base.folder))
        decoder = loaded.decoder if loaded else None
        data = read_data(spec, tokenizer, decoder, log.note)
        spec, training, validation = data.spec, data.training, data.validation
        rewarded = RewardedRun(spec, tokenizer, training, validation, log) if spec.parameters.reinforcement else None
        rows = rewarded.rows if rewarded else TokenisedDataset.of(training.store)
        shape = BaseShape.load(spec.base.folder, spec.base.quantisation)
        parameters = choose_parameters(spec, training, shape, None if rewarded is None else len(rows.lengths))
        stats = data.statistics(parameters.total_steps, method.statistics)
        log.say("data", data=stats)
        about_data = data_report(
            training, validation, spec.base, shape, spec.parameters,
            max_tokens=spec.max_tokens_per_example, past=spec.past_runs, chosen=parameters,
            machine=machine_of(spec),
        )  # fmt: skip
        write_whole(folder / REPORT_FILE, json.dumps(about_data, ensure_ascii=False).encode())
        check_usable(training, validation)
        ranks.start(requests(spec, parameters, training.store, validation.store if validation else None))
        session = Session(
            spec,
            parameters,
            rows,
            rewarded.held_out if rewarded else TokenisedDataset.of(validation.store) if validation else None,
            decoder,
            ranks,
            log.note,
            rewarded.rollout(parameters) if rewarded else None,
        )
        _say_parameters(log, session.parameters)
        log.say("phase", phase="TUNING")
        checkpointing = Checkpointing(
            folder, resume, session.fingerprint(), spec.resume_seconds, base=spec.base,
            certify=certifier(data, session, log, rewarded),
        )  # fmt: skip
        assessing = _assessing(data, session, log)
        seconds = session.tune(log, checkpointing, partial(_assess, assessing, log) if assessing else None)
        log.say("phase", phase="POST_PROCESSING")
        report, made = assessing.finish(checkpointing.checkpoints) if assessing else None, checkpointing.checkpoints
        best, reason = best_reward(made) if rewarded else best_of(report, made)
        parameters = _timed(spec, session.parameters, about_data["forecast"], seconds)
        return RunResult(
            checkpoints=made, has_report=report is not None, best_checkpoint_id=best, best_reason=reason, data=stats,
            parameters=parameters, report_file=REPORT_FILE,
        )  # fmt: skip
    finally:
        ranks.close()
        log.close()


def _say_parameters(log: ProgressLog, parameters: ChosenParameters) -> None:
    log.say("parameters", parameters=parameters)
    if parameters.beta == 0:
        log.say("warning", message=NOTHING_LEARNED)


def _assessing(data: RunData, session: Session, log: ProgressLog) -> CheckpointEvaluation | None:
    spec = data.spec
    if spec.evaluation is None or spec.validation_dataset is None:
        return None
    if session.decoder.is_sharded:  # no one device holds the base that answers
        spec = spec.model_copy(update={"device": "cpu"})
    made = CheckpointEvaluation(spec, session.base_losses, session.decoder, data.outside, log.note)
    if session.is_full:  # afterwards the weights are no longer the base's
        made.measure_base()
    return made


def _remedies(spec: RunSpec) -> list[Remedy]:
    """Of a run that was refused memory in the middle of its work."""
    low = [] if spec.low_memory else [Remedy(kind="low_memory")]
    return [Remedy(kind="smaller_base"), *low, Remedy(kind="memory_limit")]


def _timed(
    spec: RunSpec, parameters: ChosenParameters, forecast: dict[str, Any], seconds: float | None
) -> ChosenParameters:
    """Parameters with the forecast and measured time of the tuning, if it was forecast and ran without interruption."""
    if seconds is None or "machine" not in forecast:
        return parameters
    machine = forecast["machine"]
    taken = PastRun(
        base=spec.base.digest, processor=machine["processor"], threads=machine["threads"],
        precision=machine["precision"], forecast_seconds=forecast["uncorrectedSeconds"],
        tuning_seconds=round(seconds, 3),
    )  # fmt: skip
    return parameters.model_copy(update={"details": parameters.details | {PAST_RUN: taken.model_dump()}})


def _assess(assessing: CheckpointEvaluation, log: ProgressLog, record: CheckpointRecord) -> None:
    log.assessment(assessing.after(record))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
