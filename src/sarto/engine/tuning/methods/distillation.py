"""Distillation. The rows are answers of the teacher.

Sequence level (Kim & Rush 2016, arXiv 1606.07947) is supervised tuning on them. Token level adds the divergence of the
student from the teacher at each supervised token (Hinton et al. 2015, arXiv 1503.02531): m CE + T² KL(teacher‖student).
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from sarto.contract.tuning_run import SERIES
from sarto.engine.models.decoder import Adapters, Decoder
from sarto.engine.ops.reference import LOSS_ROWS
from sarto.engine.tuning.methods.method import Loss, Method, Start
from sarto.engine.tuning.methods.supervised import SUPERVISED
from sarto.engine.tuning.methods.target_losses import target_states
from sarto.engine.tuning.methods.teacher_values import TeacherValues, with_teacher_values
from sarto.engine.tuning.packing import Batch, MemoryPlan, TokenizedRows
from sarto.errors import InvalidArgument


def divergence(hidden: Tensor, head: Tensor, ids: Tensor, logs: Tensor, temperature: float, width: int) -> Tensor:
    """KL(teacher‖student) of each target in nats, times T²: (P,) float32, differentiable in `hidden` (P, D).

    `ids` (P, K) are the teacher's most probable tokens, `logs` (P, K + 1) their log-probabilities at T and, last, that
    of all other tokens together. Of the student's tokens the first `width` count."""
    values: Tensor = _Divergence.apply(hidden, head, ids, logs, temperature, width)  # type: ignore[no-untyped-call]
    return values


class _Divergence(Function):
    """The gradient in the logits z is T (q - p) for a token that is listed, and T q (1 - p' / q') for any other: q are
    the student's probabilities at T, p' and q' those of all other tokens together."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, ids: Tensor, logs: Tensor, temperature: float, width: int
    ) -> Tensor:
        losses, gradient = [], torch.empty_like(hidden)
        for first in range(0, len(hidden), LOSS_ROWS):
            rows = slice(first, first + LOSS_ROWS)
            z = torch.mm(hidden[rows], head[:width].t()).float().div_(temperature)
            z -= z.logsumexp(1, keepdim=True)  # log q
            listed, known = z.gather(1, ids[rows]), logs[rows]
            q = z.scatter(1, ids[rows], -torch.inf)
            rest = q.logsumexp(1, keepdim=True)  # log q'
            p = known.exp()
            terms = p * (known - torch.cat([listed, rest], 1))
            losses.append(torch.where(p > 0, terms, 0.0).sum(1) * temperature**2)
            share = torch.where(p[:, -1:] > 0, (known[:, -1:] - rest).clamp(max=80).exp(), 0.0)  # p' / q'
            q.exp_().mul_(1 - share).scatter_(1, ids[rows], listed.exp() - p[:, :-1])
            torch.mm(q.mul_(temperature).to(head.dtype), head[:width], out=gradient[rows])
        ctx.save_for_backward(gradient)
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad.to(gradient.dtype)[:, None], None, None, None, None, None


def batch_loss(
    decoder: Decoder,
    adapters: Adapters,
    values: TeacherValues,
    weight: float,
    temperature: float,
    batch: Batch,
    memory: MemoryPlan,
) -> tuple[Tensor, Tensor]:
    """Summed loss over the batch's targets, and the sums of TOKEN_DISTILLATION.measures."""
    hidden = target_states(decoder, adapters, batch, memory)
    losses, right = decoder.token_loss(hidden, batch.targets)
    ids, logs = values.of(batch)
    width = min(values.width, decoder.config.vocabulary)
    apart = divergence(hidden, decoder.head, ids, logs, temperature, width).sum()
    return weight * losses.sum() + apart, torch.stack([right.double(), apart.detach().double()])


def _begin(start: Start) -> tuple[Loss, tuple[TokenizedRows, ...]]:
    teaching = start.spec.teaching
    if teaching is None or teaching.model is None or start.spec.parameters.is_full:
        raise InvalidArgument("token level needs a teacher of this server and a student with an adapter")
    temperature = teaching.temperature or 1.0
    values, examples = with_teacher_values(start, teaching.model, temperature)
    loss = partial(batch_loss, start.decoder, start.adapter, values, teaching.loss_weight, temperature)
    return loss, examples


SEQUENCE_DISTILLATION = replace(SUPERVISED, data_formats=("prompts", "auto"), series=SERIES["distillation"])
TOKEN_DISTILLATION: Method = replace(SEQUENCE_DISTILLATION, begin=_begin, measures=("accuracy", "kl"))
