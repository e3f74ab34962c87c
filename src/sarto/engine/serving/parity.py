"""The parity certificate: held-out rows through the serving path, from the adapter's files, against the trainer.

Prompts must have the same tokens; logits of the replies may differ only by rounding, within a stated tolerance. A run
certifies a checkpoint before it is published, an export its files. Knows no trainer: its logits are an argument.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from sarto.contract.common import BaseWeights, ParityCertificate
from sarto.conversations.examples import Example, RowFault
from sarto.engine.models.decoder import Decoder
from sarto.engine.rendering.render import render, render_prompt, replies
from sarto.engine.rendering.tokenizer import ChatTokenizer
from sarto.engine.serving.adapter_pool import AdapterKey
from sarto.engine.serving.linear import Choice
from sarto.engine.serving.runner import PromptChunk, Row, Runner, can_be_lent
from sarto.errors import FailedPrecondition

TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 0.25}
"""Largest difference of two logits that counts as rounding, as a share of the largest logit. With large pretrained
models, single bfloat16 logits differ by up to 0.13 from float32, in training and in serving alike. The divergence is
the sharper test."""
KL_TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
"""The same for the mean divergence of the two distributions, in nats a token."""
INT8_TOLERANCES = 0.5, 0.1
"""Both, for weights served in int8 by the operator's choice: the two perplexities have the cost."""
CHUNK_TOKENS = 128
MAX_REPLY_TOKENS = 64
"""Reply tokens of each row that are compared."""

TrainerLogits = Callable[[Tensor], Tensor]
"""Tokens of one sequence (T,) int64 to the trainer's logits (T, V) for the token after each of them."""


@dataclass(frozen=True)
class _Reply:
    """One reply in training's form: all tokens, and the start of the reply."""

    tokens: list[int]
    start: int


def certify(
    base: BaseWeights,
    adapter_folder: Path | None,
    held_out: Sequence[Example],
    trainer: TrainerLogits,
    *,
    dtype: torch.dtype,
    device: torch.device,
    int8: bool = False,
    lent: Decoder | None = None,
) -> ParityCertificate:
    """Compare serving with training on the last reply of each row. Raises as `reply_logits` does. `lent` is the
    trainer's own decoder, which serves first and then computes for the trainer, so weights are in memory once if it can
    be lent."""
    measured = Divergence()
    if lent is not None and (int8 or not can_be_lent(lent, base, dtype, device)):
        lent = None
    served_logits = reply_logits(base, adapter_folder, held_out, dtype=dtype, device=device, int8=int8, lent=lent)
    for tokens, served in list(served_logits) if lent is not None else served_logits:
        with torch.inference_mode():
            input_ids = torch.tensor(tokens, device=device)
            trained = trainer(input_ids)
            measured.add(trained[-len(served) - 1 : -1].float(), served, input_ids[-len(served) :])
    if int8:
        return measured.certificate("int8", *INT8_TOLERANCES)
    return measured.certificate(str(dtype).removeprefix("torch."), TOLERANCES[dtype], KL_TOLERANCES[dtype])


def reply_logits(
    base: BaseWeights,
    adapter_folder: Path | None,
    held_out: Sequence[Example],
    *,
    dtype: torch.dtype,
    device: torch.device,
    int8: bool = False,
    lent: Decoder | None = None,
) -> Iterator[tuple[list[int], Tensor]]:
    """For the last reply of each row: tokens of prompt and reply, and serving's logits of the reply (N, V). A `lent`
    decoder is restored at the end.

    Raises FailedPrecondition with the row if training and serving render a prompt to different tokens."""
    tokenizer = ChatTokenizer.load(base.folder)
    replies = [_last_reply(example, tokenizer) for example in held_out]
    with torch.inference_mode():
        runner = Runner(base, dtype, device, adapter_limit=1, prefix_bytes=0, int8=int8, lent=lent)
    try:
        choice = None
        if adapter_folder is not None:
            with torch.inference_mode():
                choice = runner.adapters.acquire(AdapterKey(str(adapter_folder), str(adapter_folder)), None)
        for reply in replies:
            with torch.inference_mode():
                logits = _served_logits(runner, choice, reply)
            yield reply.tokens[: reply.start + len(logits)], logits
    finally:
        if lent is not None:
            runner.give_back()


class Divergence:
    """Compares two sets of logits for the same tokens, row by row."""

    def __init__(self) -> None:
        self.rows, self.compared, self.same = 0, 0, 0
        self.worst, self.largest, self.nats = 0.0, 0.0, 0.0
        self._scored, self._losses = 0, [0.0, 0.0]

    def add(self, trained: Tensor, served: Tensor, reply: Tensor | None = None) -> None:
        """Logits (N, V) float32 of one reply, expected and measured; and its tokens, for the perplexity of both."""
        if reply is not None:
            losses = (F.cross_entropy(logits, reply, reduction="sum") for logits in (trained, served))
            self._losses = [a + float(b) for a, b in zip(self._losses, losses, strict=True)]
            self._scored += len(reply)
        self.rows += 1
        self.worst = max(self.worst, float((served - trained).abs().max()))
        self.largest = max(self.largest, float(trained.abs().max()))
        self.same += int((served.argmax(-1) == trained.argmax(-1)).sum())
        self.compared += len(trained)
        logs = trained.log_softmax(-1)
        self.nats += float((logs.exp() * (logs - served.log_softmax(-1))).sum())

    def certificate(self, precision: str, tolerance: float | None, kl_tolerance: float) -> ParityCertificate:
        """`tolerance`: the share of the largest logit by which single ones may differ; None checks only the mean."""
        allowed = self.largest * (tolerance if tolerance is not None else 1.0)
        return ParityCertificate(
            rows=self.rows,
            reply_tokens=self.compared,
            precision=precision,
            max_logit_difference=self.worst,
            max_logit=self.largest,
            tolerance=allowed,
            mean_kl_nats=self.nats / max(self.compared, 1),
            training_perplexity=self._perplexity(0),
            serving_perplexity=self._perplexity(1),
            same_choice_share=self.same / max(self.compared, 1),
            kl_tolerance_nats=kl_tolerance,
            passed=self.worst <= allowed and self.nats <= kl_tolerance * self.compared,
        )

    def _perplexity(self, which: int) -> float | None:
        return math.exp(min(self._losses[which] / self._scored, 700.0)) if self._scored else None


def _last_reply(example: Example, tokenizer: ChatTokenizer) -> _Reply:
    conversation, turn = replies(example)[-1]
    try:
        rendered = render(example, tokenizer)[-1]
        served = render_prompt(conversation, tokenizer, thinking=bool(turn.thought))
    except RowFault as fault:
        raise FailedPrecondition(str(fault)) from None
    start = len(served)
    mask = rendered.loss_mask
    if rendered.tokens[:start] != served or not mask[start : start + 1] == [True] or mask[start - 1]:
        raise FailedPrecondition(
            f"Line {example.line}: serving renders this prompt to other tokens than training did ({start} tokens, "
            f"of which the first {_common(rendered.tokens, served)} agree)."
        )
    return _Reply(rendered.tokens, start)


def _common(one: list[int], other: list[int]) -> int:
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _served_logits(runner: Runner, choice: Choice, reply: _Reply) -> Tensor:
    """Logits for each reply token, (N, V): the prompt in chunks, then token by token, as in generation."""
    prompt = reply.tokens[: reply.start]
    lane, _ = runner.open(prompt, "")
    for start in range(0, len(prompt), CHUNK_TOKENS):
        length = min(CHUNK_TOKENS, len(prompt) - start)
        logits = runner.step([PromptChunk(lane, prompt, start, length, choice)])
    steps = [logits[0]]
    row = Row(reply.tokens[: reply.start + 1], choice)
    runner.join(row, lane)
    for token in reply.tokens[reply.start + 1 : reply.start + MAX_REPLY_TOKENS]:
        steps.append(runner.step([])[0])
        row.tokens.append(token)
    runner.leave(row)
    return torch.stack(steps)
