"""Chooses the operations of a device, once per process and device; a run's parameters report the choice."""

from __future__ import annotations

import torch

from sarto.engine.ops.eager_kernels import EagerKernels
from sarto.engine.ops.fused import FusedOperations
from sarto.engine.ops.library import find_library
from sarto.engine.ops.native import CompiledKernels
from sarto.engine.ops.reference import Operations, PlainOperations


def choose_operations(device: torch.device) -> Operations:
    """On a processor the fused ones, with compiled kernels if the package has them; on a CUDA device the accelerated
    ones; elsewhere the plain ones."""
    if device.type == "cuda":
        # imports a compiler, which takes seconds and which no processor needs
        from sarto.engine.ops.cuda import AcceleratedOperations

        return AcceleratedOperations(compiled=True)
    if device.type != "cpu":
        return PlainOperations()
    library = find_library()
    return FusedOperations(CompiledKernels(library) if library else EagerKernels())


def native_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 if the device multiplies it, else float32."""
    if device.type != "cpu":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    features = torch.cpu.get_capabilities()
    native = any(features.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return torch.bfloat16 if native else torch.float32
