"""Placement of a run: the device of each rank, its precision, and whether the base is whole or sharded over all of
them.

Decided from the free memory before anything is loaded, with the same result on every rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sarto.contract.base_shape import FULL_BYTES
from sarto.contract.tuning_run import Remedy, RunSpec
from sarto.engine.host_memory import ShortOfMemory
from sarto.engine.models.decoder import DecoderConfig
from sarto.engine.ops.quantised import BLOCK, QUANTISATIONS, Quantisation
from sarto.engine.ops.select import native_dtype
from sarto.errors import FailedPrecondition, InvalidArgument, Unimplemented

DEVICE_COUNTS = (2, 4, 8)


def choose_device(spec: RunSpec, rank: int = 0) -> torch.device:
    """The device of a run. Raises InvalidArgument for a device that this machine lacks or Sarto does not support."""
    count = torch.cuda.device_count()
    if spec.ranks > 1 and spec.device != "cpu" and count:
        if spec.device not in ("auto", "cuda"):
            raise InvalidArgument(
                f'A run on {spec.ranks} devices cannot be on "{spec.device}"; known: auto, cuda, cpu.'
            )
        if spec.ranks > count:
            raise FailedPrecondition(f"A run is to use {spec.ranks} devices, and this machine has {count}.")
        return torch.device("cuda", rank)
    if spec.device == "auto":
        return torch.device("cuda" if count else "cpu")
    known = ["cpu", *(["cuda"] if count else []), *(f"cuda:{index}" for index in range(count))]
    if spec.device not in known:
        raise InvalidArgument(f'Device "{spec.device}" is not available here; known: auto, {", ".join(known)}.')
    return torch.device(spec.device)


def choose_dtype(spec: RunSpec, device: torch.device) -> torch.dtype:
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    return native_dtype(device) if spec.dtype == "auto" else dtypes[spec.dtype]


def threads_of_rank(spec: RunSpec) -> int:
    """Threads of one rank: ranks on a processor share the threads of the run."""
    return max(1, spec.threads // spec.ranks)


@dataclass(frozen=True)
class Placement:
    is_sharded: bool
    base_bytes: int
    """Estimated memory of the base on each device."""
    words: str


def place(
    config: DecoderConfig,
    dtype: torch.dtype,
    quantisation: Quantisation | None,
    free_bytes: int,
    *,
    ranks: int,
    always_shard: bool,
) -> Placement:
    """The base whole if it fits, else sharded. Raises ShortOfMemory when neither does.

    `free_bytes` is that of the device with the least."""
    form = f"in {quantisation}" if quantisation else f"in {str(dtype).removeprefix('torch.')}"
    whole = base_bytes(config, dtype, quantisation)
    if whole <= free_bytes and not (always_shard and ranks > 1):
        return Placement(False, whole, f"the whole base {form}" + (f" on each of {ranks} devices" if ranks > 1 else ""))
    part = base_bytes(config, dtype, quantisation, ranks)
    if ranks > 1 and part <= free_bytes:
        return Placement(True, part, f"the base {form}, a part of each matrix on each of {ranks} devices")
    packed = {kind: base_bytes(config, dtype, kind) for kind in QUANTISATIONS}
    spread = {count: base_bytes(config, dtype, quantisation, count) for count in DEVICE_COUNTS if count > ranks}
    remedies = [Remedy(kind="quantisation", value=kind, needed_bytes=size)
                for kind, size in packed.items() if size < min(whole, free_bytes)]  # fmt: skip
    remedies += [Remedy(kind="devices", value=str(count), needed_bytes=size)
                 for count, size in spread.items() if size <= free_bytes][:1]  # fmt: skip
    raise ShortOfMemory(
        f"The base model {form} needs about {_mib(whole)}, and {_mib(free_bytes)} are free.",
        remedies or [Remedy(kind="smaller_base")],
    )


def place_full(
    config: DecoderConfig, dtype: torch.dtype, free_bytes: int, *, ranks: int, always_shard: bool
) -> Placement:
    """All weights with their training state, whole on each device. Raises ResourceExhausted with the numbers if they
    do not fit, Unimplemented if they are to be sharded."""
    if always_shard:
        raise Unimplemented("Full tuning does not shard the weights over several devices; tune an adapter.")
    needed = full_bytes(base_bytes(config, torch.float32, None) // torch.float32.itemsize, dtype)
    if needed > free_bytes:
        raise ShortOfMemory(
            f"Full tuning of this base needs about {_mib(needed)} for weights, gradients and moments, and"
            f" {_mib(free_bytes)} are free; an adapter needs a fraction of it.",
            [Remedy(kind="smaller_base")],
        )
    words = "all weights in float32 with gradients and moments" + (f" on each of {ranks} devices" if ranks > 1 else "")
    return Placement(False, needed, words)


def full_bytes(parameters: int, dtype: torch.dtype) -> int:
    """Memory of weights under full tuning: master, gradient and two moments in float32, and a copy for products in
    another type."""
    return parameters * (FULL_BYTES + (0 if dtype == torch.float32 else dtype.itemsize))


def base_bytes(config: DecoderConfig, dtype: torch.dtype, quantisation: Quantisation | None, ranks: int = 1) -> int:
    """Memory of a base on a device while it is tuned; with several ranks, of its shard."""
    heads = config.head_shape.total * config.head_dim
    answers = config.heads * config.head_dim
    matrices = [heads * config.width, config.width * answers, 2 * config.feed_forward * config.width,
                config.feed_forward * config.width]  # fmt: skip
    each = {None: float(dtype.itemsize), "int8": 1.0, "nf4": 0.5 + 4 / BLOCK}[quantisation]
    layer = int(sum(matrices) * each)
    ends = config.vocabulary * config.width * dtype.itemsize * (1 if config.tied else 2)
    buffers = 0
    if quantisation or ranks > 1:  # a matrix as it is multiplied exists while it is
        buffers += max(matrices) * (2 * dtype.itemsize + 12)
    if ranks > 1:  # one layer is gathered while another computes
        buffers += 2 * layer
    return config.layers * layer // ranks + ends + buffers


def _mib(size: int) -> str:
    return f"{size >> 20} MiB"
