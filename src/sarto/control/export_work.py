"""What models:export does: the spec of the engine's program, and its files into the user's bucket."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from sarto.control import sealing
from sarto.control.context import Control
from sarto.errors import FailedPrecondition, SartoError, from_status
from sarto.schema.runs import ExportResult, ExportSpec

HELD_OUT_ROWS = 4
SHIPPED = "the sample that Sarto ships (the job's own data is gone)"
RESPONSE = "type.googleapis.com/google.cloud.aiplatform.v1.ExportModelResponse"


class ExportWork:
    kind = "export"

    def __init__(self, control: Control, sample: Sequence[bytes]) -> None:
        """`sample`: dataset rows to compare on where a job's own data is gone."""
        self._control, self._sample = control, sample

    def serving(self, run: dict[str, Any], folder: Path) -> AbstractContextManager[None]:
        """It asks for nothing."""
        return nullcontext()

    def publish(
        self, project: str, run: dict[str, Any], folder: Path, result: bytes
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Raises what the program said, and ResourceExhausted for a full disk; then none of the files is stored."""
        found = ExportResult.model_validate_json(result)
        if found.error is not None:
            raise from_status(found.error)
        buckets, bucket, stored = self._control.buckets, run["bucket"], list[str]()
        try:
            for name in found.files:
                target = f"{run['folder']}/{name}"
                buckets.put_file(
                    bucket, target, folder / "files" / name, project=project, kms_key=run.get("kmsKey", "")
                )
                stored.append(target)
        except SartoError:
            for target in stored:
                buckets.delete(bucket, target, project=project)
            raise
        comparison = found.comparison.model_dump() if found.comparison else None
        return {"@type": RESPONSE}, {"comparison": comparison}

    def spec(self, project: str, run: dict[str, Any], folder: Path) -> ExportSpec:
        if not Path(run["adapterFolder"]).is_dir():
            raise FailedPrecondition("The model was deleted before it was exported.")
        control, job = self._control, run["jobResource"]
        base = control.base(run["weights"])
        entry = control.catalog.find(run["baseModel"])
        uri = self._hold_out(run, folder / "held_out.jsonl")
        tuned = job.get("supervisedTuningSpec", {})
        metadata = job.get("tuningJobMetadata", {})
        return ExportSpec(
            model=run["model"],
            title=run["title"],
            format=run["format"],
            base=base,
            adapter_folder=sealing.adapter(control, run["adapterFolder"]),
            folder=str(folder),
            held_out=str(folder / "held_out.jsonl"),
            held_out_uri=uri,
            data_format="translation" if entry.rules.kind == "translation" and uri != SHIPPED else "auto",
            license=entry.weights.license,
            card={
                "Tuning job": job.get("name", ""),
                "Tuned from": run["baseModel"],
                "Checkpoint": f"{run['checkpoint']}, after step {run['step']}",
                "Training data": tuned.get("trainingDatasetUri", ""),
                "Training data, sha256": self._pinned(run["job"], "training").get("digest", ""),
                "Hyperparameters": metadata.get("effectiveParameters", {"rank": run["rank"]}),
                "Validation": run["origin"].get("evaluation"),
                "Parity of training and serving": run["origin"].get("certificate"),
            },
            threads=control.limits.threads,
        )

    def _hold_out(self, run: dict[str, Any], target: Path) -> str:
        """A few rows of the job's validation data, else of its training data, else of ours; says which."""
        data = self._control.job_folder(run["job"]) / "data"
        for name in ("validation", "training"):
            record, source = self._pinned(run["job"], name), data / f"{name}.jsonl"
            if record and source.exists():
                with sealing.open_file(self._control, run["job"], source) as file:
                    rows = [line for line in islice(file, 64) if line.strip() and len(line) < 20_000]
                if rows:
                    target.write_bytes(b"\n".join(row.rstrip(b"\n") for row in rows[:HELD_OUT_ROWS]))
                    return str(record["uri"])
        target.write_bytes(b"\n".join(self._sample[:HELD_OUT_ROWS]))
        return SHIPPED

    def _pinned(self, job: str, name: str) -> dict[str, Any]:
        """What is known of a job's data; empty when it is gone."""
        path = self._control.job_folder(job) / "data" / f"{name}.json"
        return dict(orjson.loads(sealing.read(self._control, job, path))) if path.exists() else {}
