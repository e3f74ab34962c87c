"""Where a run computes and in which form it holds the base: the device of each rank, its precision, and whether the
base fits whole or only in parts on all of them.

Decided from the free memory before anything is loaded, alike on every rank. Used by `session.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sarto.engine.families.decoder import DecoderConfig
from sarto.engine.ops.choose import native_dtype
from sarto.engine.ops.quantised import BLOCK, QUANTISATIONS, Quantisation
from sarto.errors import FailedPrecondition, InvalidArgument, ResourceExhausted
from sarto.schema.runs import RunSpec

LABEL = "sarto-quantisation"
SETTING = "devices"
DEVICE_COUNTS = (2, 4, 8)


def choose_device(spec: RunSpec, rank: int = 0) -> torch.device:
    """Raises InvalidArgument for a device this machine or Sarto does not have."""
    count = torch.cuda.device_count()
    if spec.ranks > 1 and spec.device != "cpu" and count:
        if spec.device not in ("auto", "cuda"):
            raise InvalidArgument(f'a run on {spec.ranks} devices cannot be on "{spec.device}"; known: auto, cuda, cpu')
        if spec.ranks > count:
            raise FailedPrecondition(f"a run is to use {spec.ranks} devices, and this machine has {count}")
        return torch.device("cuda", rank)
    if spec.device == "auto":
        return torch.device("cuda" if count else "cpu")
    known = ["cpu", *(["cuda"] if count else []), *(f"cuda:{index}" for index in range(count))]
    if spec.device not in known:
        raise InvalidArgument(f'device "{spec.device}" is not available here; known: auto, {", ".join(known)}')
    return torch.device(spec.device)


def choose_dtype(spec: RunSpec, device: torch.device) -> torch.dtype:
    given = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    return native_dtype(device) if spec.dtype == "auto" else given[spec.dtype]


def threads_of_rank(spec: RunSpec) -> int:
    """Ranks on a processor share the threads of the run."""
    return max(1, spec.threads // spec.ranks)


@dataclass(frozen=True)
class Placement:
    is_sharded: bool
    base_bytes: int
    """What the base is estimated to take on each device."""
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
    """The base whole where it fits, else in parts. Raises ResourceExhausted, naming what would fit, when neither does.

    `free_bytes`: of the device that has least."""
    form = f"in {quantisation}" if quantisation else f"in {str(dtype).removeprefix('torch.')}"
    whole = base_bytes(config, dtype, quantisation)
    if whole <= free_bytes and not (always_shard and ranks > 1):
        return Placement(False, whole, f"the whole base {form}" + (f" on each of {ranks} devices" if ranks > 1 else ""))
    part = base_bytes(config, dtype, quantisation, ranks)
    if ranks > 1 and part <= free_bytes:
        return Placement(True, part, f"the base {form}, a part of each matrix on each of {ranks} devices")
    packed = {kind: base_bytes(config, dtype, kind) for kind in QUANTISATIONS}
    spread = {count: base_bytes(config, dtype, quantisation, count) for count in DEVICE_COUNTS if count > ranks}
    ways = [f"with the label {LABEL}={kind} it would need {_mib(size)}"
            for kind, size in packed.items() if size < min(whole, free_bytes)]  # fmt: skip
    ways += [f"with the setting {SETTING}={count} it would need {_mib(size)} on each GPU"
             for count, size in spread.items() if size <= free_bytes][:1]  # fmt: skip
    raise ResourceExhausted(
        f"The base model {form} needs about {_mib(whole)}, and {_mib(free_bytes)} are free: "
        + ("; ".join(ways) or "tune a smaller base model, or free memory")
        + "."
    )


def base_bytes(config: DecoderConfig, dtype: torch.dtype, quantisation: Quantisation | None, ranks: int = 1) -> int:
    """What a base takes on a device while it is tuned; with several ranks, a part of it."""
    heads = config.head_shape.total * config.head_dim
    answers = config.heads * config.head_dim
    matrices = [heads * config.width, config.width * answers, 2 * config.feed_forward * config.width,
                config.feed_forward * config.width]  # fmt: skip
    each = {None: float(dtype.itemsize), "int8": 1.0, "nf4": 0.5 + 4 / BLOCK}[quantisation]
    layer = int(sum(matrices) * each)
    ends = config.vocabulary * config.width * dtype.itemsize * (1 if config.tied else 2)
    made = 0
    if quantisation or ranks > 1:  # a matrix as it is multiplied exists while it is
        made += max(matrices) * (2 * dtype.itemsize + 12)
    if ranks > 1:  # one layer is gathered while another computes
        made += 2 * layer
    return config.layers * layer // ranks + ends + made


def _mib(size: int) -> str:
    return f"{size >> 20} MiB"
