"""The parity certificate: held-out rows through the serving path, from the adapter's files, against the trainer.

Prompts must have the same tokens; logits of the replies may differ by rounding only, within a stated tolerance. A run
calls this for a checkpoint before it is announced, an export for what it wrote. Knows no trainer: its logits are
handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sarto.engine.data.render import render, render_prompt, replies
from sarto.engine.data.tokenizer import ChatTokenizer
from sarto.engine.serving.adapters import AdapterKey
from sarto.engine.serving.products import Choice
from sarto.engine.serving.runner import PromptChunk, Row, Runner
from sarto.errors import FailedPrecondition
from sarto.schema.examples import Example, RowFault
from sarto.schema.runs import BaseWeights, ParityCertificate

TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 0.15}
"""Largest difference of two logits that is still rounding, as a share of the largest logit. Single logits of bfloat16
stray far in a wild model; the divergence below is the sharper test."""
KL_TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
"""The same for the mean divergence of the two distributions, in nats a token."""
CHUNK_TOKENS = 128
MAX_REPLY_TOKENS = 64
"""Of each row, as many reply tokens are compared."""

TrainerLogits = Callable[[Tensor], Tensor]
"""Tokens of one sequence (T,) int64 to the trainer's logits (T, V) for what follows each of them."""


@dataclass(frozen=True)
class _Reply:
    """One reply as training saw it: all tokens, and where the reply begins."""

    tokens: list[int]
    start: int


def certify(
    base: BaseWeights,
    adapter_folder: Path,
    held_out: Sequence[Example],
    trainer: TrainerLogits,
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> ParityCertificate:
    """Compare serving with training on the last reply of each row.

    Raises FailedPrecondition, naming the row, where the two render a prompt to different tokens.
    """
    tokenizer = ChatTokenizer.load(base.folder)
    found = [_last_reply(example, tokenizer) for example in held_out]
    with torch.inference_mode():
        runner = Runner(base, dtype, device, adapter_limit=1, prefix_bytes=0)
        choice = runner.adapters.acquire(AdapterKey(str(adapter_folder), str(adapter_folder)), None)
        worst, largest, same, compared, divergence = 0.0, 0.0, 0, 0, 0.0
        for reply in found:
            served = _served_logits(runner, choice, reply)
            first = reply.start - 1
            trained = trainer(torch.tensor(reply.tokens, device=device))[first : first + len(served)].float()
            worst = max(worst, float((served - trained).abs().max()))
            largest = max(largest, float(trained.abs().max()))
            same += int((served.argmax(-1) == trained.argmax(-1)).sum())
            compared += len(served)
            log_trained = trained.log_softmax(-1)
            divergence += float((log_trained.exp() * (log_trained - served.log_softmax(-1))).sum())
    return ParityCertificate(
        rows=len(found),
        reply_tokens=compared,
        precision=str(dtype).removeprefix("torch."),
        max_logit_difference=worst,
        max_logit=largest,
        tolerance=TOLERANCES[dtype] * largest,
        mean_kl_nats=divergence / max(compared, 1),
        same_choice_share=same / max(compared, 1),
        kl_tolerance_nats=KL_TOLERANCES[dtype],
        passed=worst <= TOLERANCES[dtype] * largest and divergence <= KL_TOLERANCES[dtype] * compared,
    )


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
            f"line {example.line}: serving renders this prompt to other tokens than training did ({start} tokens, "
            f"of which the first {_common(rendered.tokens, served)} agree)"
        )
    return _Reply(rendered.tokens, start)


def _common(one: list[int], other: list[int]) -> int:
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _served_logits(runner: Runner, choice: Choice, reply: _Reply) -> Tensor:
    """Logits for each reply token: the prompt in chunks, then token by token, as an answer is generated. (N, V)"""
    prompt = reply.tokens[: reply.start]
    lane, _ = runner.open(prompt, "")
    for start in range(0, len(prompt), CHUNK_TOKENS):
        length = min(CHUNK_TOKENS, len(prompt) - start)
        logits = runner.step([PromptChunk(lane, prompt, start, length, choice)])
    found = [logits[0]]
    row = Row(reply.tokens[: reply.start + 1], choice)
    runner.join(row, lane)
    for token in reply.tokens[reply.start + 1 : reply.start + MAX_REPLY_TOKENS]:
        found.append(runner.step([])[0])
        row.tokens.append(token)
    runner.leave(row)
    return torch.stack(found)
