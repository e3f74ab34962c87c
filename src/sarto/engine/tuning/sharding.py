"""Sharding of a base that no single device can hold: FSDP2 keeps a part of every matrix on each, and gathers a layer
while it is used.

The base is not trained, so no gradient is reduced.
"""

from __future__ import annotations

import warnings

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from sarto.engine.models.decoder import Decoder

warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
"""FSDP warns of changes in place; our operations change none of their arguments."""


def shard(decoder: Decoder, device: torch.device, count: int) -> None:
    """Move a decoder from the processor's memory to `count` devices, layer by layer; call it on every rank.

    Afterwards the ranks must compute in step. Norms are small and whole on each device."""
    mesh = init_device_mesh(device.type, (count,))
    norms: set[nn.Parameter] = set()
    for index in range(decoder.config.layers):
        layer = decoder.layer(index)
        layer.norms.to(device)
        norms.update(layer.norms.parameters())
        fully_shard(layer, mesh=mesh, ignored_params=norms)
    embedding = nn.Parameter(decoder.embedding, requires_grad=False)
    head = embedding if decoder.head is decoder.embedding else nn.Parameter(decoder.head, requires_grad=False)
    for name, weight in (("embedding", embedding), ("head", head)):
        delattr(decoder, name)
        decoder.register_parameter(name, weight)
    fully_shard(decoder, mesh=mesh, ignored_params=norms)
    decoder.is_sharded = True
