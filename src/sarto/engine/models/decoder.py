"""The transformer decoder that every family shares, for training, serving and scoring.

Works on packed rows: T tokens side by side, no padding and no batch dimension. Training and serving differ in two
arguments: `attend` (attention inside training segments, or over a KV cache) and `adapters` (none, one trainable LoRA,
or a pool with another adapter in each row). Knows no files (load.py) and no loss (engine/tuning).

Contract for implementations of Attention and Adapters:
- `Decoder.forward(tokens (T,), positions (T,), attend, adapters, rows)` returns normed hidden states; `Decoder.logits`
  multiplies them by the head. `rows`: only these rows go past the last attention, in that order.
- `attend.attend(layer, qkv)`: qkv (T, (H + 2 HK) * hd) in the weights' dtype. q and k are normed and rotated, q
  includes the attention scale (so scores = q k^T), v follows k. Returns (T, H * hd), same dtype.
  `config.windows[layer]` is the sliding window in tokens, or None: a query at p sees keys p - window < k <= p.
- `adapters.project(layer, group, x, projection)`: group is one of GROUPS; x (T, K). Returns (T, N) = x W^T + bias +
  LoRA. `projection.names` and `.cuts` give the rows of W of each projection (`q_proj` …).
- The residual stream is float32; x and the weights have the decoder's dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sarto.engine.models.matrices import Dense, Matrix, Packed
from sarto.engine.ops.quantised import Quantisation
from sarto.engine.ops.reference import HeadShape, Operations, PlainOperations
from sarto.engine.ops.trained import TrainedMatrix, embed, token_loss

Group = Literal["qkv", "o", "gate_up", "down"]
GROUPS: dict[Group, tuple[str, ...]] = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "o": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
"""Projections with the same input are one matrix; the value names its parts in row order."""


@dataclass(frozen=True)
class DecoderConfig:
    """Shape and special features of one base; a family module reads it from the base's `config.json`."""

    family: str
    vocabulary: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    feed_forward: int
    context: int
    norm_eps: float
    inverse_frequencies: tuple[Tensor, ...]
    """Rotary inverse frequencies of each layer, (hd / 2,); layers with equal ones share the tensor."""
    windows: tuple[int | None, ...]
    activation: Literal["silu", "gelu_tanh"] = "silu"
    tied: bool = True
    query_scale: float = 1.0
    embedding_scale: float = 1.0
    norm_offset: float = 0.0
    """Added to norm weights when they are loaded: Gemma stores them around zero."""
    norms: dict[str, str] = field(
        default_factory=lambda: {"before_attention": "input_layernorm", "before_mlp": "post_attention_layernorm"}
    )
    """Norm of a layer → its name in the weights; `after_attention` and `after_mlp` norm the terms of the residual
    stream."""

    @property
    def head_shape(self) -> HeadShape:
        return HeadShape(self.heads, self.kv_heads, self.head_dim)


class Attention(Protocol):
    def attend(self, layer: int, qkv: Tensor) -> Tensor: ...


class Adapters(Protocol):
    def project(self, layer: int, group: Group, x: Tensor, projection: Projection) -> Tensor: ...


@dataclass(frozen=True)
class TrainedEnds:
    """Embedding and head while they are trained; one matrix if they are tied."""

    embedding: TrainedMatrix
    head: TrainedMatrix
    anchor: Tensor
    """Connects the embedded tokens to the graph."""


class Projection(nn.Module):
    """One frozen matrix W (N, K) that may hold several projections, one below the other."""

    def __init__(
        self,
        names: tuple[str, ...],
        parts: list[Tensor],
        bias: Tensor | None,
        quantisation: Quantisation | None = None,
    ) -> None:
        super().__init__()
        self.names = names
        """Names in the weights, without layer and suffix: `self_attn.q_proj`."""
        self.cuts = [len(part) for part in parts]
        self.bias: Tensor | None
        whole = parts[0] if len(parts) == 1 else torch.cat(parts)
        self.matrix: Matrix = Packed(whole, quantisation) if quantisation else Dense(whole)
        self.register_buffer("bias", bias)

    @property
    def weight(self) -> Tensor:
        """W as it is multiplied; computed for each call if it is stored in another form."""
        return self.matrix()  # type: ignore[no-any-return]

    @weight.setter
    def weight(self, values: Tensor) -> None:
        self.matrix = Dense(values)

    @property
    def outputs(self) -> int:
        return self.matrix.shape[0]

    @property
    def inputs(self) -> int:
        return self.matrix.shape[1]


class Layer(nn.Module):
    """Weights of one layer; `norms` holds float32 weights by the names of `DecoderConfig.norms`, and `q`, `k`."""

    def __init__(self, projections: dict[Group, Projection], norms: dict[str, Tensor]) -> None:
        super().__init__()
        self.qkv, self.o = projections["qkv"], projections["o"]
        self.gate_up, self.down = projections["gate_up"], projections["down"]
        self.norms = nn.ParameterDict({k: nn.Parameter(v, requires_grad=False) for k, v in norms.items()})

    def forward(self, walk: Callable[..., tuple[Tensor, Tensor]], *inputs: Any) -> tuple[Tensor, Tensor]:
        """The part of the decoder's forward pass in this layer. It is a module call, so that FSDP gathers sharded
        weights for its duration."""
        return walk(*inputs)

    def projection(self, group: Group) -> Projection:
        return {"qkv": self.qkv, "o": self.o, "gate_up": self.gate_up, "down": self.down}[group]


class Decoder(nn.Module):
    """Frozen weights and the forward pass. Has no state between calls."""

    def __init__(
        self, config: DecoderConfig, embedding: Tensor, head: Tensor | None, norm: Tensor, layers: list[Layer]
    ) -> None:
        super().__init__()
        self.config = config
        self.ops: Operations = PlainOperations()
        self.is_sharded = False
        """Each of several devices holds a part of every matrix; all of them must compute in step."""
        self.trained: TrainedEnds | None = None
        """Set if all weights are trained."""
        self.embedding: Tensor
        self.head: Tensor
        self.norm: Tensor
        self.register_buffer("embedding", embedding)
        self.register_buffer("head", embedding if head is None else head)
        self.register_buffer("norm", norm)
        self.layers = nn.ModuleList(layers)

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding.dtype

    @property
    def device(self) -> torch.device:
        return self.embedding.device

    def layer(self, index: int) -> Layer:
        layer = self.layers[index]
        assert isinstance(layer, Layer)
        return layer

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        attend: Attention,
        adapters: Adapters,
        rows: Tensor | None = None,
        *,
        recompute: bool = False,
    ) -> Tensor:
        """Normed hidden states of every row, or of `rows` only: (T,) int64 → (T or R, D), the input of `logits`.

        `recompute` keeps one tensor per layer for the backward pass and computes the rest again."""
        rotary = self._rotary(positions)
        ends = self.trained
        delta = F.embedding(tokens, self.embedding) if ends is None else embed(tokens, ends.embedding, ends.anchor)
        stream: Tensor | None = None
        walk = partial(checkpoint, self._layer, use_reentrant=False) if recompute else self._layer
        if self.config.embedding_scale != 1.0:
            delta = delta * torch.tensor(self.config.embedding_scale, dtype=delta.dtype, device=delta.device)
        for index in range(self.config.layers):
            output_rows = rows if index == self.config.layers - 1 else None
            stream, delta = self.layers[index](walk, index, stream, delta, rotary, attend, adapters, output_rows)
        return self.ops.add_norm(stream, delta, self.norm, self.config.norm_eps)[1]

    def leave_files(self) -> None:
        """Copy mapped tensors out of the weights' file, so that its pages no longer count as this process's memory."""
        tied = self.head is self.embedding
        self.embedding = self.embedding.clone()
        self.head = self.embedding if tied else self.head.clone()

    def logits(self, hidden: Tensor) -> Tensor:
        """(R, D) → (R, V) in the decoder's dtype."""
        return F.linear(hidden, self.head)

    def token_loss(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The operation of that name with this head."""
        if self.trained is None:
            return self.ops.token_loss(hidden, self.head, targets)
        return token_loss(self.ops, hidden, self.trained.head, targets)

    def _layer(
        self,
        index: int,
        stream: Tensor | None,
        delta: Tensor,
        rotary: list[tuple[Tensor, Tensor]],
        attend: Attention,
        adapters: Adapters,
        rows: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """One layer: stream (T, D) float32 and a term still to be added to it (T, D), before and after the layer."""
        layer, eps, ops = self.layer(index), self.config.norm_eps, self.ops
        stream, x = ops.add_norm(stream, delta, layer.norms["before_attention"], eps)
        qkv = adapters.project(index, "qkv", x, layer.qkv)  # (T, (H + 2 HK) hd)
        qkv = self._turned(layer, qkv, *rotary[index])
        attended = attend.attend(index, qkv)  # (T, H hd)
        if rows is not None:  # past the last attention a row needs no other row
            stream, attended = stream.index_select(0, rows), attended.index_select(0, rows)
        delta = adapters.project(index, "o", attended, layer.o)
        if "after_attention" in layer.norms:
            delta = ops.norm(delta, layer.norms["after_attention"], eps)
        stream, x = ops.add_norm(stream, delta, layer.norms["before_mlp"], eps)
        gate_up = adapters.project(index, "gate_up", x, layer.gate_up)  # (T, 2 F)
        delta = adapters.project(index, "down", ops.gated(gate_up, self.config.activation), layer.down)
        if "after_mlp" in layer.norms:
            delta = ops.norm(delta, layer.norms["after_mlp"], eps)
        return stream, delta

    def _turned(self, layer: Layer, qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Heads with norms if the family has them, q and k rotated, q scaled."""
        config = self.config
        if "q" in layer.norms:
            heads = qkv.unflatten(1, (-1, config.head_dim))  # (T, H + 2 HK, hd)
            q, k, v = heads.split([config.heads, config.kv_heads, config.kv_heads], 1)
            q = self.ops.norm(q, layer.norms["q"], config.norm_eps)
            k = self.ops.norm(k, layer.norms["k"], config.norm_eps)
            qkv = torch.cat([q, k, v], 1).flatten(1)
        return self.ops.rotate(qkv, cos, sin, config.head_shape, config.query_scale)

    def _rotary(self, positions: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Cosines and sines of each layer, (T, hd / 2) float32; layers with the same frequencies share them."""
        tables: dict[int, tuple[Tensor, Tensor]] = {}
        for frequencies in self.config.inverse_frequencies:
            if id(frequencies) not in tables:
                angles = positions[:, None].float() * frequencies.to(positions.device)
                tables[id(frequencies)] = (angles.cos(), angles.sin())
        return [tables[id(frequencies)] for frequencies in self.config.inverse_frequencies]
