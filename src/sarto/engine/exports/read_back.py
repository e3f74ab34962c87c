"""The clean process of an export's check: reads the files as a stranger would and writes tokens and logits of replies.

`python -m sarto.engine.exports.read_back SPEC OUT`; knows nothing of what the writing process had in memory.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from sarto.engine.families.convert import convert_gguf
from sarto.engine.serving.certificate import reply_logits
from sarto.schema.examples import Example, parse_line
from sarto.schema.runs import BaseWeights, ExportSpec

GGUF_FILE = "model.gguf"


def held_out(spec: ExportSpec) -> list[Example]:
    lines = Path(spec.held_out).read_bytes().splitlines()
    return [parse_line(raw, number, data_format=spec.data_format) for number, raw in enumerate(lines, 1)]


def read_back(spec: ExportSpec, scratch: Path) -> dict[str, Tensor]:
    """Tokens and float32 logits of every row's last reply, from the exported files (an adapter needs its base)."""
    files = Path(spec.folder) / "files"
    base, adapter = BaseWeights(name=files.name, folder=str(files), digest="exported"), None
    if spec.format == "adapter":
        base, adapter = spec.base, files
    if spec.format.startswith("gguf"):
        convert_gguf(files / GGUF_FILE, scratch / "converted")
        base = BaseWeights(name="converted", folder=str(scratch / "converted"), digest="exported")
    found: dict[str, Tensor] = {}
    rows = reply_logits(base, adapter, held_out(spec), dtype=torch.float32, device=torch.device("cpu"))
    for number, (tokens, logits) in enumerate(rows):
        found[f"tokens.{number}"] = torch.tensor(tokens)
        found[f"logits.{number}"] = logits.contiguous()
    return found


def main(arguments: list[str]) -> None:
    spec = ExportSpec.model_validate_json(Path(arguments[0]).read_bytes())
    torch.set_num_threads(spec.threads)
    with tempfile.TemporaryDirectory(dir=spec.folder) as scratch:
        save_file(read_back(spec, Path(scratch)), arguments[1])


if __name__ == "__main__":
    main(sys.argv[1:])
