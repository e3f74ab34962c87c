"""The new process of an export's check: reads only the exported files and writes tokens and logits of replies.

`python -m sarto.engine.programs.export_check OUT SPEC PLACE=FOLDER…`; has nothing of the exporting process's memory.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from sarto.contract.common import BaseWeights
from sarto.contract.export_run import ExportSpec
from sarto.contract.programs import read_spec
from sarto.contract.run_folder import EXPORT_FOLDER
from sarto.conversations.examples import Example, parse_line
from sarto.engine.serving.parity import reply_logits
from sarto.engine.weights.convert import convert_gguf

GGUF_FILE = "model.gguf"


def held_out(spec: ExportSpec) -> list[Example]:
    lines = Path(spec.held_out).read_bytes().splitlines()
    return [parse_line(raw, number, data_format=spec.data_format) for number, raw in enumerate(lines, 1)]


def read_back(spec: ExportSpec, scratch: Path) -> dict[str, Tensor]:
    """Tokens and float32 logits of every row's last reply, from the exported files (an adapter needs its base)."""
    files = Path(spec.folder) / EXPORT_FOLDER
    base, adapter = BaseWeights(name=files.name, folder=str(files), digest="exported"), None
    if spec.format == "adapter":
        base, adapter = spec.base, files
    if spec.format.startswith("gguf"):
        convert_gguf(files / GGUF_FILE, scratch / "converted")
        base = BaseWeights(name="converted", folder=str(scratch / "converted"), digest="exported")
    tensors: dict[str, Tensor] = {}
    rows = reply_logits(base, adapter, held_out(spec), dtype=torch.float32, device=torch.device("cpu"))
    for number, (tokens, logits) in enumerate(rows):
        tensors[f"tokens.{number}"] = torch.tensor(tokens)
        tensors[f"logits.{number}"] = logits.contiguous()
    return tensors


def main(arguments: list[str]) -> None:
    spec = read_spec(ExportSpec, arguments[1:])
    torch.set_num_threads(spec.threads)
    with tempfile.TemporaryDirectory(dir=spec.folder) as scratch:
        save_file(read_back(spec, Path(scratch)), arguments[0])


if __name__ == "__main__":
    main(sys.argv[1:])
