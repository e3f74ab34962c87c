"""Stores the results of a run: exported checkpoints, evaluations so far, and a resume point every few seconds.

The run folder belongs to this attempt. The resume folder outlives it, with the resume point, the history behind it and
links to the exported checkpoints.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from sarto.contract.common import BaseWeights, ParityCertificate
from sarto.contract.run_folder import CHECKPOINTS_FOLDER
from sarto.contract.tuning_run import CheckpointRecord, EvalMetrics
from sarto.engine.models.trainable import Trainable
from sarto.engine.tuning.checkpoint_files import ResumeHeader, export, link_folder, load_resume_point, save_resume_point
from sarto.engine.tuning.progress_log import ProgressLog
from sarto.engine.tuning.trainer import Trainer
from sarto.errors import FailedPrecondition, Internal

SAVING_SHARE = 0.05
"""Largest share of the time that resume points may take."""


class Checkpointing:
    def __init__(
        self,
        run_folder: Path,
        resume_folder: Path | None,
        fingerprint: str,
        resume_seconds: float,
        *,
        base: BaseWeights,
        certify: Callable[[Path], ParityCertificate] | None = None,
    ) -> None:
        """`certify` compares serving's results of an exported checkpoint with training's."""
        self.run_folder, self.resume_folder = run_folder, resume_folder
        self.fingerprint, self.resume_seconds, self.base = fingerprint, resume_seconds, base
        self.checkpoints: list[CheckpointRecord] = []
        self.evaluations: list[EvalMetrics] = []
        self._certify = certify
        self._saved_at = time.monotonic()
        self._save_seconds = 0.0

    def resume(self, trainer: Trainer, progress_log: ProgressLog) -> None:
        """Continue from the resume point of an earlier attempt, if there is one for this run."""
        if self.resume_folder is None:
            return
        try:
            point = load_resume_point(self.resume_folder)
        except Internal as error:
            progress_log.say("note", message=f"{error.message} Training starts from the first step.")
            return
        if point is None:
            return
        header = point.header
        if header.fingerprint != self.fingerprint:
            progress_log.say(
                "note", message="the resume point is of other data or parameters; starting from the first step"
            )
            return
        # The lost attempt may have written lines after its point. Their steps are repeated, so the lines are dropped.
        lines = (self.resume_folder / header.history_file).read_bytes()[: header.history_bytes]
        for record in header.checkpoints:  # each attempt has a new run folder, in which control reads checkpoints
            link_folder(self.resume_folder / record.folder, self.run_folder / record.folder)
        self.checkpoints, self.evaluations = list(header.checkpoints), list(header.evaluations)
        trainer.memory = header.memory  # another division of a step would round its sums differently
        trainer.restore(header.completed, point.state)
        progress_log.replay(lines)
        progress_log.say("note", message=f"resumed after step {header.completed}")

    def export(
        self,
        trained: Trainable,
        step: int,
        epoch: int,
        evaluation: EvalMetrics | None,
        training_loss: float | None = None,
    ) -> CheckpointRecord:
        """Export a checkpoint. Raises FailedPrecondition with the numbers if serving diverges from training."""
        folder = f"{CHECKPOINTS_FOLDER}/{step}"
        (self.run_folder / CHECKPOINTS_FOLDER).mkdir(exist_ok=True)
        files = export(trained, self.run_folder / folder, self.base)
        if self.resume_folder is not None:  # the run folder is this attempt's only; a later one needs the files too
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
        certificate = self._certify(self.run_folder / CHECKPOINTS_FOLDER / str(step))
        if not certificate.passed:
            raise FailedPrecondition(
                f"Checkpoint after step {step}: serving diverges from training. Logits differ "
                f"by up to {certificate.max_logit_difference:.3g} ({certificate.tolerance:.3g} is allowed) and by "
                f"{certificate.mean_kl_nats:.3g} nats a token over {certificate.reply_tokens} tokens of "
                f"{certificate.rows} rows."
            )
        return certificate

    def save_if_due(self, trainer: Trainer, progress_log: ProgressLog) -> None:
        """Save a resume point if it is time; call between steps only, since a point has whole steps."""
        if self.resume_folder is None or progress_log.history is None:
            return
        begun = time.monotonic()
        # a point of a whole model takes seconds to write
        if self.resume_seconds and begun - self._saved_at < max(self.resume_seconds, self._save_seconds / SAVING_SHARE):
            return
        header = ResumeHeader(
            fingerprint=self.fingerprint,
            completed=trainer.completed,
            memory=trainer.memory,
            history_file=progress_log.history.name,
            history_bytes=progress_log.history_bytes,
            checkpoints=self.checkpoints,
            evaluations=self.evaluations,
        )
        save_resume_point(self.resume_folder, header, trainer.state())
        trainer.was_saved()
        self._saved_at = time.monotonic()
        self._save_seconds = self._saved_at - begun
