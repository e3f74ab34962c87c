"""The comparison of serving with training on a few rows, for the certificate of each checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sarto.contract.common import ParityCertificate
from sarto.engine.programs.rewarded_run import RewardedRun
from sarto.engine.programs.run_data import RunData
from sarto.engine.serving.parity import certify
from sarto.engine.tuning.progress_log import ProgressLog
from sarto.engine.tuning.session import Session


def certifier(
    data: RunData, session: Session, log: ProgressLog, rewarded: RewardedRun | None
) -> Callable[[Path], ParityCertificate]:
    """The certifier of a run. Where rows are prompts, they are compared with the model's own answers."""
    spec, rows = data.spec, [] if rewarded else data.held_out()

    def certify_checkpoint(folder: Path) -> ParityCertificate:
        log.note("Comparing serving with training, for the certificate.")
        return certify(
            spec.base.fully_tuned(str(folder)) if session.is_full else spec.base,
            None if session.is_full else folder,
            rewarded.certified_rows(data.certified_lines()) if rewarded else rows,
            session.logits,
            dtype=session.dtype,
            device=session.serving_device,
            int8=spec.serve_int8,
            lent=None if session.is_full else session.decoder,
        )

    return certify_checkpoint
