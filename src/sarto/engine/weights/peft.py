"""Files of an adapter in PEFT's format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sarto.engine.models.adapter_shape import ALL_TARGETS, AdapterFile, AdapterShape
from sarto.engine.models.lora import LoraAdapter
from sarto.errors import InvalidArgument

WEIGHTS_FILE = "adapter_model.safetensors"


CONFIG_FILE = "adapter_config.json"


def write_adapter(adapter: LoraAdapter, folder: Path, base_name: str) -> None:
    """Write `adapter_model.safetensors` and `adapter_config.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in adapter.named_tensors()}
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    shape = adapter.shape
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "revision": None,
        "r": shape.rank,
        "lora_alpha": int(shape.alpha) if float(shape.alpha).is_integer() else shape.alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted(shape.targets),
        "modules_to_save": None,
        "layers_to_transform": None,
        "layers_pattern": None,
        "rank_pattern": {},
        "alpha_pattern": {},
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
        "inference_mode": True,
    }
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")


def read_adapter(folder: Path) -> AdapterFile:
    """Read an adapter. Raises InvalidArgument for files that are missing, damaged or not finite, or for an unsupported
    kind of LoRA."""
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG_FILE).read_text())
        tensors = load_file(folder / WEIGHTS_FILE)
    except (OSError, ValueError, SafetensorError) as error:
        raise InvalidArgument(f"Adapter {folder.name} cannot be read: {error}") from None
    for key in ("use_rslora", "use_dora", "fan_in_fan_out", "rank_pattern", "alpha_pattern", "modules_to_save"):
        if config.get(key):
            raise InvalidArgument(f"Adapter {folder.name} uses {key}, which Sarto does not support.")
    if config.get("peft_type") != "LORA" or config.get("bias", "none") != "none":
        raise InvalidArgument(f"Adapter {folder.name} is not a plain LoRA adapter.")
    targets = config["target_modules"]
    named = ALL_TARGETS if targets == "all-linear" else tuple(t for t in ALL_TARGETS if t in targets)
    if isinstance(targets, list) and len(named) != len(targets):
        raise InvalidArgument(f"Adapter {folder.name} targets {targets}; known: {', '.join(ALL_TARGETS)}.")
    check_finite(tensors, folder.name)
    shape = AdapterShape(int(config["r"]), float(config["lora_alpha"]), named)
    return AdapterFile(shape, {name: tensor.float() for name, tensor in tensors.items()})


def check_finite(tensors: dict[str, Tensor], name: str) -> None:
    for key, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise InvalidArgument(f"Adapter {name} has values that are not finite, in {key}.")
