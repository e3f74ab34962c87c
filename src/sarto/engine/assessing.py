"""The evaluation of a run: after every checkpoint the rows are answered by the serving engine and scored; at the end
the standard report. `run.py` assembles it; tuning, serving and evaluation do not know one another.

Whatever goes wrong with a row or a metric is said in its place; the tuning goes on.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import orjson

from sarto.engine.asking_engine import asking
from sarto.engine.data.tokenizer import ChatTokenizer
from sarto.engine.evaluation.asking import Generate
from sarto.engine.evaluation.job import CheckpointMeasures, JobEvaluation, evaluate_checkpoint, report_job
from sarto.engine.evaluation.report import TITLES, Report
from sarto.engine.evaluation.rows import EvaluationRow, read_rows
from sarto.engine.families.decoder import Decoder
from sarto.engine.outside import Outside
from sarto.engine.serving.adapters import AdapterKey
from sarto.engine.serving.engine import Engine, EngineOptions
from sarto.errors import DeadlineExceeded, SartoError, fault_of
from sarto.schema.evaluation import EvaluateDatasetRun, EvaluationConfig
from sarto.schema.runs import EVALUATION_FOLDER, Assessment, CheckpointRecord, RunSpec
from sarto.wording import row_count

logger = logging.getLogger(__name__)
STANDARD_ROWS = 40
"""Rows that the standard report asks, evenly spread; with an evaluationConfig all are."""
CONCURRENCY = 32
LONGER, MORE_TOKENS, MOST_TOKENS = 1.25, 8, 1024
"""An answer may be a quarter and eight tokens longer than the longest reference."""
BASE_FILE = "base.json"


class Assessing:
    """`after` takes every checkpoint; `finish` gives the report. `say` hears, in words, of what is going on."""

    def __init__(
        self,
        spec: RunSpec,
        base_losses: Callable[[], tuple[float, float] | None],
        decoder: Decoder,
        say: Callable[[str], None],
    ) -> None:
        """`decoder`: the base as training has it; it answers while training waits, so that weights are there once."""
        assert spec.evaluation is not None
        self.spec, self.plan, self.say = spec, spec.evaluation, say
        self.folder = Path(spec.resume_folder or spec.run_folder) / EVALUATION_FOLDER
        self._base_losses, self._decoder = base_losses, decoder
        self._notes: list[str] = []
        self._job: JobEvaluation | None = None
        self._engine: Engine | None = None
        self._outside = Outside(Path(spec.run_folder))

    def after(self, record: CheckpointRecord) -> Assessment:
        """Answers and scores of one checkpoint; what another attempt has asked already is not asked again."""
        checkpoint = measures(record)
        report: Report | None = None
        key = AdapterKey(checkpoint.digest, str(Path(self.spec.run_folder) / record.folder))
        try:
            job = self._open()
            self.say(f"Evaluation of checkpoint {record.checkpoint_id} on {row_count(len(job.rows))} began.")
            assert self._engine is not None
            judged = replace(job, judges=self._judges(self._engine))
            self._engine.lend(self.spec.base, self._decoder)
            try:
                asked = evaluate_checkpoint(judged, checkpoint, asking(self._engine, self.spec.base, key))
                run = asyncio.run(asyncio.wait_for(asked, self.plan.max_seconds or None))
            finally:
                self._engine.give_back(self.spec.base)
            report = asyncio.run(report_job(job, [checkpoint]))
        except TimeoutError:
            limit = f"{self.plan.max_seconds:g} seconds that the evaluation of a checkpoint may take on this server"
            fault = DeadlineExceeded(f"It took longer than the {limit} (max_evaluation_seconds).")
            run = self._failed(record, fault)
        except Exception as error:  # whatever it is, it is the evaluation's, and the tuning goes on
            run = self._failed(record, _told(error))
        else:
            self.say(_about(record.checkpoint_id, report))
        return Assessment(
            checkpoint_id=record.checkpoint_id,
            folder=checkpoint.folder_name,
            run=run.to_json() if run else None,
            step=record.step,
            scores={metric.metric: metric.mean for metric in report.systems[-1].metrics} if report else {},
        )

    def _failed(self, record: CheckpointRecord, fault: SartoError) -> EvaluateDatasetRun | None:
        self.say(f"Evaluation of checkpoint {record.checkpoint_id} failed: {fault.message}")
        if self.plan.config is None:
            return None
        return EvaluateDatasetRun(checkpoint_id=record.checkpoint_id, error=fault.to_status())

    def finish(self, checkpoints: Sequence[CheckpointRecord]) -> Report | None:
        """The report over all checkpoints; None where none was evaluated."""
        try:
            if self._job is None and not checkpoints:
                return None
            job = self._job or self._open()
            return asyncio.run(report_job(job, [measures(record) for record in checkpoints], self._notes))
        except Exception as error:  # as above
            self.say(f"The evaluation report failed: {_told(error).message}")
            return None
        finally:
            if self._engine is not None:
                self._engine.close()

    def _open(self) -> JobEvaluation:
        """Rows, the engine and whoever judges; made with the first checkpoint."""
        if self._job is not None:
            return self._job
        spec, dataset = self.spec, self.spec.validation_dataset
        assert dataset is not None
        rows, faults = read_rows(Path(dataset.path), data_format=spec.data_format)
        config = EvaluationConfig.read(self.plan.config) if self.plan.config is not None else None
        if faults:
            self._notes.append(f"{row_count(len(faults))} of the validation data could not be read.")
        chosen = rows if config is not None else spread_rows(rows, STANDARD_ROWS)
        if len(chosen) < len(rows):
            self._notes.append(f"{len(chosen)} of {len(rows)} validation rows were asked, evenly spread over the file.")
        dtype = "int8" if spec.serve_int8 else spec.dtype
        self._engine = Engine(EngineOptions(threads=spec.threads, device=spec.device, dtype=dtype))
        if self.plan.outside_judges:
            names = ", ".join(self.plan.outside_judges)
            self.say(f"Judges elsewhere are asked ({names}): what their templates ask for leaves this server.")
        self._job = JobEvaluation(
            f"Evaluation of {spec.job}",
            self.folder,
            chosen,
            asking(self._engine, spec.base),
            config=config,
            dataset_uri=dataset.uri,
            output_uri=self.plan.output_uri,
            concurrency=CONCURRENCY,
            max_output_tokens=answer_tokens(chosen, self._engine.tokenizer(spec.base)),
            base_measures=self._base_measures(),
        )
        return self._job

    def _judges(self, engine: Engine) -> dict[str, Generate]:
        """Who answers for each autorater; whoever was away at the last checkpoint is asked again."""
        found = {"": asking(engine, self.spec.base)}
        found |= {name: self._outside.asking(name) for name in self.plan.outside_judges}
        for name, judge in self.plan.judges.items():
            key = AdapterKey(judge.adapter_digest, judge.adapter_folder) if judge.adapter_folder else None
            found[name] = asking(engine, judge.base, key)
        return found

    def _base_measures(self) -> tuple[float | None, float | None]:
        """Measured once for all attempts."""
        path = self.folder / BASE_FILE
        if path.exists():
            loss, accuracy = orjson.loads(path.read_bytes())
            return loss, accuracy
        found = self._base_losses() or (None, None)
        self.folder.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".part")
        unfinished.write_bytes(orjson.dumps(found))
        unfinished.replace(path)
        return found


def measures(record: CheckpointRecord) -> CheckpointMeasures:
    found = record.evaluation
    files = "".join(f"{name}:{digest}\n" for name, digest in sorted(record.files.items()))
    return CheckpointMeasures(
        record.checkpoint_id,
        record.step,
        record.epoch,
        found.loss if found else None,
        found.accuracy if found else None,
        record.training_loss,
        hashlib.sha256(files.encode()).hexdigest(),
    )


def spread_rows(rows: Sequence[EvaluationRow], most: int) -> list[EvaluationRow]:
    """`most` rows at even distances; all where there are no more."""
    if len(rows) <= most:
        return list(rows)
    return [rows[index * len(rows) // most] for index in range(most)]


def answer_tokens(rows: Sequence[EvaluationRow], tokenizer: ChatTokenizer) -> int:
    """Most tokens of an answer, by the longest reference; 0 where there is none."""
    longest = max((len(tokenizer.encode(row.reference)) for row in rows if row.reference), default=0)
    return min(MOST_TOKENS, int(longest * LONGER) + MORE_TOKENS) if longest else 0


def _told(error: Exception) -> SartoError:
    """The fault, and in the log where it came from if nobody expected it."""
    if not isinstance(error, SartoError):
        logger.error("evaluation failed", exc_info=error)
    return fault_of(error)


def _about(checkpoint_id: str, report: Report | None) -> str:
    """The primary metric of base and checkpoint in one sentence."""
    words = f"Checkpoint {checkpoint_id} was evaluated"
    if report is None or not report.primary_metric:
        return f"{words}."
    values = [
        (system.name, metric.mean)
        for system in report.systems
        for metric in system.metrics
        if metric.metric == report.primary_metric
    ]
    title = TITLES.get(report.primary_metric, report.primary_metric)
    listed = ", ".join(f"{name} {mean:.3f}" for name, mean in values)
    return f"{words} on {row_count(report.rows)}. {title}: {listed}."
