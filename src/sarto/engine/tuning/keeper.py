"""Keeps what a run has made: exported checkpoints, evaluations so far, and a resume point every few seconds.

The run folder belongs to this attempt; the resume folder outlives it and holds the resume point, the history behind it
and links to the exported checkpoints.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from sarto.engine.lora import LoraAdapter
from sarto.engine.tuning.checkpoint import Cursor, export, link_folder, load_resume_point, save_resume_point
from sarto.engine.tuning.journal import Journal
from sarto.engine.tuning.trainer import Trainer
from sarto.errors import FailedPrecondition, Internal
from sarto.schema.runs import CheckpointRecord, EvalMetrics, ParityCertificate

CHECKPOINTS = "checkpoints"


class Keeper:
    def __init__(
        self,
        run_folder: Path,
        resume_folder: Path | None,
        fingerprint: str,
        resume_seconds: float,
        *,
        base_name: str,
        certify: Callable[[Path], ParityCertificate] | None = None,
    ) -> None:
        """`certify` compares what serving makes of an exported adapter with what training has."""
        self.run_folder, self.resume_folder = run_folder, resume_folder
        self.fingerprint, self.resume_seconds, self.base_name = fingerprint, resume_seconds, base_name
        self.checkpoints: list[CheckpointRecord] = []
        self.evaluations: list[EvalMetrics] = []
        self._certify = certify
        self._saved_at = time.monotonic()

    def resume(self, trainer: Trainer, journal: Journal) -> None:
        """Continue where an earlier attempt stopped, if it left a point that belongs to this very run."""
        if self.resume_folder is None:
            return
        try:
            point = load_resume_point(self.resume_folder)
        except Internal as error:
            journal.say("note", message=f"{error.message}; starting from the first step")
            return
        if point is None:
            return
        cursor = point.cursor
        if cursor.fingerprint != self.fingerprint:
            journal.say("note", message="the resume point is of other data or parameters; starting from the first step")
            return
        lines = (self.resume_folder / cursor.history_file).read_bytes()[: cursor.history_bytes]
        for record in cursor.checkpoints:
            link_folder(self.resume_folder / record.folder, self.run_folder / record.folder)
        self.checkpoints, self.evaluations = list(cursor.checkpoints), list(cursor.evaluations)
        trainer.memory = cursor.memory
        trainer.restore(cursor.completed, point.state)
        journal.replay(lines)
        journal.say("note", message=f"resumed after step {cursor.completed}")

    def export(
        self,
        adapter: LoraAdapter,
        step: int,
        epoch: int,
        evaluation: EvalMetrics | None,
        training_loss: float | None = None,
    ) -> CheckpointRecord:
        """Raises FailedPrecondition, with the numbers, for an adapter that serving would answer differently from."""
        folder = f"{CHECKPOINTS}/{step}"
        (self.run_folder / CHECKPOINTS).mkdir(exist_ok=True)
        files = export(adapter, self.run_folder / folder, self.base_name)
        if self.resume_folder is not None:
            link_folder(self.run_folder / folder, self.resume_folder / folder)
        record = CheckpointRecord(
            checkpoint_id=str(len(self.checkpoints) + 1),
            epoch=epoch,
            step=step,
            folder=folder,
            files=files,
            evaluation=evaluation,
            training_loss=training_loss,
            certificate=self._certified(step),
        )
        self.checkpoints.append(record)
        return record

    def _certified(self, step: int) -> ParityCertificate | None:
        if self._certify is None:
            return None
        found = self._certify(self.run_folder / CHECKPOINTS / str(step))
        if not found.passed:
            raise FailedPrecondition(
                f"checkpoint after step {step}: serving would answer differently from what was trained. Logits differ "
                f"by up to {found.max_logit_difference:.3g} ({found.tolerance:.3g} is allowed) and by "
                f"{found.mean_kl_nats:.3g} nats a token over {found.reply_tokens} tokens of {found.rows} rows."
            )
        return found

    def save_if_due(self, trainer: Trainer, journal: Journal) -> None:
        """Call between steps only: a point holds whole steps with all that belongs to them."""
        if self.resume_folder is None or journal.history is None:
            return
        if time.monotonic() - self._saved_at < self.resume_seconds:
            return
        cursor = Cursor(
            fingerprint=self.fingerprint,
            completed=trainer.completed,
            memory=trainer.memory,
            history_file=journal.history.name,
            history_bytes=journal.history_bytes,
            checkpoints=self.checkpoints,
            evaluations=self.evaluations,
        )
        save_resume_point(self.resume_folder, cursor, trainer.state())
        self._saved_at = time.monotonic()
