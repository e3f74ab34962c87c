"""One export, from a folder with `spec.json` to `files/` and, written last, `result.json`.

`python -m sarto.engine.programs.export FOLDER/spec.json PLACE=FOLDER…` ends with 0 when there is a result, also for a
refusal, which is the result's `error`. Stops when its standard input ends. Knows no HTTP, users or database.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from sarto.contract.common import ParityCertificate
from sarto.contract.export_run import ExportResult, ExportSpec
from sarto.contract.run_folder import EXPORT_FOLDER
from sarto.engine.ops.select import native_dtype
from sarto.engine.programs.export_check import GGUF_FILE, held_out
from sarto.engine.programs.model_card import model_card
from sarto.engine.programs.operation_folder import begin, tell, write_result
from sarto.engine.serving.parity import Divergence, reply_logits
from sarto.engine.weights.gguf_writer import F16, Q8_0, write_gguf
from sarto.engine.weights.hub_files import copy_configuration, copy_texts
from sarto.engine.weights.merge import INDEX, merged_tensors, weight_files
from sarto.engine.weights.peft import CONFIG_FILE, WEIGHTS_FILE, read_adapter
from sarto.errors import FailedPrecondition, InvalidArgument, ResourceExhausted, SartoError

KL_TOLERANCES = {"adapter": 1e-2, "merged-safetensors": 2e-2, "gguf-f16": 1e-2, "gguf-q8-0": 5e-2}
"""Mean divergence from the served model in nats a token, above which an export is refused."""
FULL = os.strerror(errno.ENOSPC)
"""Text of the error for a full disk, also in errors of libraries that have no error number."""


def main(arguments: list[str]) -> int:
    spec = begin(ExportSpec, arguments)
    torch.set_num_threads(spec.threads)
    try:
        result = export(spec, arguments)
    except SartoError as error:
        result = ExportResult(error=error.to_status())
    except (OSError, SafetensorError) as error:
        if FULL not in str(error):
            raise
        shutil.rmtree(Path(spec.folder) / EXPORT_FOLDER, ignore_errors=True)
        full = ResourceExhausted(f"The disk of {spec.folder} is full; free space and export again.")
        result = ExportResult(error=full.to_status())
    write_result(Path(spec.folder), result)
    return 0


def export(spec: ExportSpec, arguments: list[str]) -> ExportResult:
    """Write, read back, compare, describe. `arguments` are the program's. Raises FailedPrecondition with the numbers
    for files that diverge."""
    files = Path(spec.folder) / EXPORT_FOLDER
    shutil.rmtree(files, ignore_errors=True)
    files.mkdir()
    tell(Path(spec.folder), 10, "Writing the files.")
    write_files(spec, files)
    tell(Path(spec.folder), 60, "Reading the files back in a process of their own.")
    compared = compare(spec, arguments)
    if not compared.passed:
        raise FailedPrecondition(
            f"The export is refused: it diverges from the served model by {compared.mean_kl_nats:.3g} nats a token, "
            f"{compared.kl_tolerance_nats:.3g} is allowed ({compared.reply_tokens} tokens of {compared.rows} rows; "
            f"logits differ by up to {compared.max_logit_difference:.3g}). Nothing was written to the bucket."
        )
    (files / "README.md").write_text(model_card(spec, compared), encoding="utf-8")
    tell(Path(spec.folder), 90, "Copying the files into the bucket.")
    return ExportResult(files=sorted(path.name for path in files.iterdir()), comparison=compared)


def write_files(spec: ExportSpec, files: Path) -> None:
    base = Path(spec.base.folder)
    adapter = read_adapter(Path(spec.adapter_folder)) if spec.adapter_folder else None
    if spec.format.startswith("gguf"):
        kind = F16 if spec.format == "gguf-f16" else Q8_0
        write_gguf(
            base, adapter, files / GGUF_FILE, kind, spec.title or spec.model, spec.license, spec.base.quantisation
        )
        return
    copy_texts(base, files)
    if spec.format == "adapter":
        shutil.copyfile(Path(spec.adapter_folder) / WEIGHTS_FILE, files / WEIGHTS_FILE)
        config = json.loads((Path(spec.adapter_folder) / CONFIG_FILE).read_text())
        config["base_model_name_or_path"] = spec.base.public_name  # an older adapter has a title there
        (files / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
        return
    copy_configuration(base, files, "" if spec.adapter_folder else "bfloat16")
    for name in weight_files(base):
        merged = merged_tensors(base, name, adapter, spec.base.quantisation)
        tensors = {key: tensor.to(torch.bfloat16) for key, tensor in merged}
        save_file(tensors, files / name, metadata={"format": "pt"})
    if (base / INDEX).exists():
        shutil.copyfile(base / INDEX, files / INDEX)


def compare(spec: ExportSpec, arguments: list[str]) -> ParityCertificate:
    """Compare the served model with the exported files, which a new process reads. Raises FailedPrecondition if tokens
    differ."""
    out = Path(spec.folder) / "read_back.safetensors"
    command = [sys.executable, "-m", "sarto.engine.programs.export_check", str(out), *arguments]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise FailedPrecondition(f"The exported files could not be read back: {last}")
    exported = load_file(out)
    out.unlink()
    device = torch.device("cpu")
    dtype = native_dtype(device)
    measured = Divergence()
    adapter = Path(spec.adapter_folder) if spec.adapter_folder else None
    served = reply_logits(spec.base, adapter, held_out(spec), dtype=dtype, device=device)
    for number, (tokens, logits) in enumerate(served):
        if tokens != exported[f"tokens.{number}"].tolist():
            raise FailedPrecondition(f"Row {number + 1}: the exported tokenizer gives other token ids than serving.")
        measured.add(logits, exported[f"logits.{number}"])
    if not measured.compared:
        raise InvalidArgument("There are no held-out rows to compare the export on.")
    return measured.certificate(str(dtype).removeprefix("torch."), None, KL_TOLERANCES[spec.format])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
