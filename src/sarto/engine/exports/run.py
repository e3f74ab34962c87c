"""One export, from a folder with `spec.json` to `files/` and, written last, `result.json`.

`python -m sarto.engine.exports.run FOLDER/spec.json` ends with 0 when there is a result, also for a refusal, which is
the result's `error`. Stops when its standard input ends. Knows no HTTP, users or database.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from sarto.engine.exports.card import model_card
from sarto.engine.exports.gguf import F16, Q8_0, write_gguf
from sarto.engine.exports.merge import INDEX, merged_tensors, weight_files
from sarto.engine.exports.read_back import GGUF_FILE, held_out
from sarto.engine.lora import CONFIG_FILE, WEIGHTS_FILE, read_adapter
from sarto.engine.ops.choose import native_dtype
from sarto.engine.program import end_with_parent, tell, write_whole
from sarto.engine.serving.certificate import Divergence, reply_logits
from sarto.errors import FailedPrecondition, InvalidArgument, ResourceExhausted, SartoError
from sarto.schema.runs import ExportResult, ExportSpec, ParityCertificate

KL_TOLERANCES = {"adapter": 1e-2, "merged-safetensors": 2e-2, "gguf-f16": 1e-2, "gguf-q8-0": 5e-2}
"""Mean divergence from the served model in nats a token, above which an export is refused."""
FULL = os.strerror(errno.ENOSPC)
"""What a full disk is called, also by libraries that have no number for it."""
TEXT_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
MODEL_FILES = ("config.json", "generation_config.json")


def main(arguments: list[str]) -> int:
    spec = ExportSpec.model_validate_json(Path(arguments[0]).read_bytes())
    end_with_parent()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    torch.set_num_threads(spec.threads)
    try:
        result = export(spec, Path(arguments[0]))
    except SartoError as error:
        result = ExportResult(error=error.to_status())
    except (OSError, SafetensorError) as error:
        if FULL not in str(error):
            raise
        shutil.rmtree(Path(spec.folder) / "files", ignore_errors=True)
        full = ResourceExhausted(f"The disk of {spec.folder} is full; free space and export again.")
        result = ExportResult(error=full.to_status())
    write_whole(Path(spec.folder) / "result.json", result.model_dump_json(indent=1))
    return 0


def export(spec: ExportSpec, spec_file: Path) -> ExportResult:
    """Write, read back, compare, describe. Raises FailedPrecondition, with the numbers, for files that differ."""
    files = Path(spec.folder) / "files"
    shutil.rmtree(files, ignore_errors=True)
    files.mkdir()
    tell(Path(spec.folder), 10, "Writing the files.")
    write_files(spec, files)
    tell(Path(spec.folder), 60, "Reading the files back in a process of their own.")
    compared = compare(spec, spec_file)
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
    base, adapter = Path(spec.base.folder), read_adapter(Path(spec.adapter_folder))
    if spec.format.startswith("gguf"):
        kind = F16 if spec.format == "gguf-f16" else Q8_0
        write_gguf(
            base, adapter, files / GGUF_FILE, kind, spec.title or spec.model, spec.license, spec.base.quantisation
        )
        return
    for name in TEXT_FILES + (() if spec.format == "adapter" else MODEL_FILES):
        if (base / name).exists():
            shutil.copyfile(base / name, files / name)
    if not (files / "tokenizer_config.json").exists():
        (files / "tokenizer_config.json").write_text(json.dumps(_tokenizer_config(base), indent=2))
    if spec.format == "adapter":
        for name in (WEIGHTS_FILE, CONFIG_FILE):
            shutil.copyfile(Path(spec.adapter_folder) / name, files / name)
        return
    for name in weight_files(base):
        merged = merged_tensors(base, name, adapter, spec.base.quantisation)
        tensors = {key: tensor.to(torch.bfloat16) for key, tensor in merged}
        save_file(tensors, files / name, metadata={"format": "pt"})
    if (base / INDEX).exists():
        shutil.copyfile(base / INDEX, files / INDEX)


def compare(spec: ExportSpec, spec_file: Path) -> ParityCertificate:
    """The served model here, the exported files in a clean process. Raises FailedPrecondition where tokens differ."""
    out = Path(spec.folder) / "read_back.safetensors"
    command = [sys.executable, "-m", "sarto.engine.exports.read_back", str(spec_file), str(out)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise FailedPrecondition(f"The exported files could not be read back: {last}")
    exported = load_file(out)
    out.unlink()
    device = torch.device("cpu")
    dtype = native_dtype(device)
    measured = Divergence()
    served = reply_logits(spec.base, Path(spec.adapter_folder), held_out(spec), dtype=dtype, device=device)
    for number, (tokens, logits) in enumerate(served):
        if tokens != exported[f"tokens.{number}"].tolist():
            raise FailedPrecondition(
                f"row {number + 1}: the exported tokenizer gives other token ids than serving does"
            )
        measured.add(logits, exported[f"logits.{number}"])
    if not measured.compared:
        raise InvalidArgument("there are no held-out rows to compare the export on")
    return measured.certificate(str(dtype).removeprefix("torch."), None, KL_TOLERANCES[spec.format])


def _tokenizer_config(base: Path) -> dict[str, object]:
    """What transformers needs beside `tokenizer.json` to know the special tokens."""
    config = json.loads((base / "config.json").read_text())
    added = json.loads((base / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    texts = {row["id"]: row["content"] for row in added}
    found: dict[str, object] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for name in ("bos", "eos", "pad"):
        number = config.get(f"{name}_token_id")
        number = number[0] if isinstance(number, list) else number
        if number in texts:
            found[f"{name}_token"] = texts[number]
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
