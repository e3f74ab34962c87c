"""The work of models:export: the spec of the engine's program, and its output files in the user's bucket."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy.engine import Connection

from sarto.contract.export_run import ExportResult, ExportSpec
from sarto.contract.places import Places
from sarto.contract.run_folder import (
    DATA_FOLDER,
    EXPORT_FOLDER,
    HELD_OUT_FILE,
    LABELLED_FOLDER,
    RESUME_FOLDER,
    WORKSPACE,
    in_workspace,
)
from sarto.control.access import run_identity
from sarto.control.context import Control
from sarto.control.executors.executor import RunTransport
from sarto.control.exports.export_model import ExportRun
from sarto.control.runs import sealed_files
from sarto.control.runs.operation_runner import OperationOutcome
from sarto.errors import FailedPrecondition, from_status
from sarto.storage.buckets import batch_write

HELD_OUT_ROWS = 4
SHIPPED = "the sample that Sarto ships (the job's own data is gone)"
RESPONSE = "type.googleapis.com/google.cloud.aiplatform.v1.ExportModelResponse"


class ExportWork:
    kind = "export"
    run_type = ExportRun

    def __init__(self, control: Control, sample: Sequence[bytes]) -> None:
        """`sample`: dataset rows for the comparison if the job's data was deleted."""
        self._control, self._sample = control, sample

    def serving(self, run: ExportRun, program: RunTransport) -> AbstractContextManager[None]:
        """Does nothing: an export sends no requests."""
        return nullcontext()

    @contextmanager
    def publish(self, project: str, run: ExportRun, folder: Path, result: bytes) -> Iterator[OperationOutcome]:
        """Store the files. Raises the program's error, and ResourceExhausted for a full disk; then no file is
        stored."""
        export = ExportResult.model_validate_json(result)
        if export.error is not None:
            raise from_status(export.error)
        control, bucket, target = self._control, run.bucket, f"gs://{run.bucket}/{run.folder}"
        run_identity.check_agent(control, project, [(target, run_identity.WRITE)])
        may_replace = run.may_replace and run_identity.may_replace(control, project, target, "")
        files = {f"{run.folder}/{name}": folder / EXPORT_FOLDER / name for name in export.files}
        comparison = export.comparison.model_dump() if export.comparison else None
        with batch_write.receive(control.buckets, bucket, files, run.kms_key) as received:

            def name_files(connection: Connection) -> list[str]:
                return received.write(connection, project, may_replace=may_replace)

            yield OperationOutcome({"@type": RESPONSE}, {"comparison": comparison}, name_files)

    def spec(self, project: str, run: ExportRun, folder: Path, places: Places) -> ExportSpec:
        if run.adapter_folder and not self._control.adapter_folder(run.adapter_folder).is_dir():
            raise FailedPrecondition("The model was deleted before it was exported.")
        control, job = self._control, run.job_resource
        base = control.base(run.weights)
        if job.custom_base_model:
            base = base.model_copy(update={"hub": job.custom_base_model})
        entry = control.catalog.find(run.base_model)
        if not base.hub:  # a fully tuned model
            base = base.model_copy(update={"hub": entry.weights.hub})
        spec, row, metadata = job.tuning_spec, job.spec_row, job.tuning_job_metadata
        data_format = row.format_for(entry.rules.kind) if row else "auto"
        part = DATA_FOLDER
        if data_format == "prompts":  # the rows that its teacher labelled
            data_format, part = "auto", f"{RESUME_FOLDER}/{LABELLED_FOLDER}"
        uri = self._hold_out(run, part, folder / HELD_OUT_FILE)
        effective = metadata.effective_parameters if metadata else None
        return ExportSpec(
            model=run.model,
            title=run.title,
            format=run.format,
            base=places.named(base),
            adapter_folder=(
                places.name(sealed_files.adapter(control, run.adapter_folder)) if run.adapter_folder else ""
            ),
            folder=WORKSPACE,
            held_out=in_workspace(HELD_OUT_FILE),
            held_out_uri=uri,
            data_format="auto" if uri == SHIPPED else data_format,
            license=entry.weights.license,
            card={
                "Tuning job": job.name,
                "Tuned from": run.base_model,
                "Checkpoint": f"{run.checkpoint}, after step {run.step}",
                "Training data": spec.dataset_uri if spec else "",
                "Training data, sha256": self._pinned(run.job, "training").get("digest", ""),
                "Hyperparameters": {"rank": run.rank} if effective is None else effective,
                "Validation": run.origin.evaluation,
                "Parity of training and serving": run.origin.certificate,
            },
            threads=control.limits.threads,
            instructions=control.instructions(base.folder),
        )

    def _hold_out(self, run: ExportRun, part: str, target: Path) -> str:
        """A few rows of the job's validation data, else of its training data, else of ours; and the name of the
        source. `part`: the folder of the data in that of the job."""
        data = self._control.job_folder(run.job) / part
        for name in ("validation", "training"):
            record, source = self._pinned(run.job, name), data / f"{name}.jsonl"
            if record and source.exists():
                with sealed_files.open_file(self._control, run.job, source) as file:
                    rows = [line for line in islice(file, 64) if line.strip() and len(line) < 20_000]
                if rows:
                    target.write_bytes(b"\n".join(row.rstrip(b"\n") for row in rows[:HELD_OUT_ROWS]))
                    return str(record["uri"])
        target.write_bytes(b"\n".join(self._sample[:HELD_OUT_ROWS]))
        return SHIPPED

    def _pinned(self, job: str, name: str) -> dict[str, Any]:
        """The pinned versions of a job's data; empty if the job was deleted."""
        path = self._control.job_folder(job) / DATA_FOLDER / f"{name}.json"
        return dict(orjson.loads(sealed_files.read(self._control, job, path))) if path.exists() else {}
