"""Metrics scored by a model: pointwise (a number for an answer) and pairwise (the better of two answers).

Fills the template, samples the judge several times, half of the times with the two answers swapped, and aggregates the
samples of a row. The reply follows a schema, so every score is valid. Knows no files; `plan.py` builds a JudgeMetric
from the API's specs.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from sarto.engine.evaluation.answers import Answer
from sarto.engine.evaluation.generate import PAUSES_SECONDS, Generate, ask, spread
from sarto.engine.evaluation.metrics.aggregate import choice_mode
from sarto.engine.evaluation.metrics.computed import read_json
from sarto.engine.evaluation.rows import EvaluationRow, reply_text
from sarto.errors import Internal
from sarto.schema.evaluation import PLACEHOLDER, PairwiseChoice
from sarto.schema.generation import Content, GenerateContentRequest, GenerateContentResponse, GenerationConfig, Part

Choice = PairwiseChoice
FIRST, SECOND, TIE = "FIRST", "SECOND", "TIE"
SAMPLES = 4
MAX_LISTED_SCORES = 101
"""Up to this number of possible scores the judge selects one from a list; above, it writes a number."""
JUDGE_TOKENS = 512
EXPLANATION = 400
"""Most characters of an explanation, so that a long one leaves tokens for the score."""
SCORE_ADVICE = "Reply with one JSON object: a short explanation first, then the score{range}."
CHOICE_ADVICE = (
    "Reply with one JSON object: a short explanation first, then the choice. FIRST means that the answer which stands "
    "first in the task above is better, SECOND the one which stands second, TIE that neither is."
)


@dataclass(frozen=True)
class ScoreScale:
    """The valid scores of a judge. Without limits any finite number is valid."""

    low: float = -math.inf
    high: float = math.inf
    step: float | None = None

    def listed(self) -> list[str]:
        """All scores as texts if there are few, else none."""
        if self.step is None or (self.high - self.low) / self.step + 1 > MAX_LISTED_SCORES:
            return []
        count = math.floor((self.high - self.low) / self.step + 1e-9) + 1
        return [f"{self.low + index * self.step:.10g}" for index in range(count)]

    def schema(self) -> dict[str, Any]:
        if self.listed():
            return {"type": "STRING", "enum": self.listed()}
        limits = {"minimum": self.low, "maximum": self.high} if math.isfinite(self.low) else {}
        return {"type": "NUMBER", **limits}

    def advice(self) -> str:
        return f", from {self.low:g} to {self.high:g}" if math.isfinite(self.low) else ""


@dataclass(frozen=True)
class JudgeMetric:
    """One metric scored by a model. `answer_names` and `baseline_names` are the placeholders of the two answers."""

    key: str
    template: str
    is_pairwise: bool = False
    system_instruction: str = ""
    answer_names: frozenset[str] = frozenset({"response"})
    baseline_names: frozenset[str] = frozenset()
    scale: ScoreScale = ScoreScale()
    returns_raw: bool = False
    model: str = ""
    samples: int = SAMPLES
    flips: bool = True
    config: GenerationConfig = field(default_factory=GenerationConfig)


@dataclass(frozen=True)
class Judgement:
    """The judgement of one row: `samples` are scores or choices, `raw` the judge's text if requested. `flipped` has for
    each sample whether the two answers were swapped; choices are already converted back."""

    score: float | None = None
    choice: PairwiseChoice | None = None
    explanation: str = ""
    samples: tuple[float | PairwiseChoice, ...] = ()
    flipped: tuple[bool, ...] = ()
    raw: tuple[str, ...] = ()
    failed_samples: int = 0
    error: dict[str, Any] | None = None


@dataclass(frozen=True)
class _Sample:
    value: float | PairwiseChoice | None = None
    explanation: str = ""
    raw: str = ""
    is_flipped: bool = False
    error: dict[str, Any] | None = None


def fill(template: str, values: Mapping[str, str]) -> str:
    """The template with every `{name}` of `values` replaced once. Braces inside values, doubled braces, and braces
    around other text are unchanged."""
    return PLACEHOLDER.sub(lambda match: values.get(match[1], match[0]), template)


async def judge_rows(
    metric: JudgeMetric,
    rows: Sequence[EvaluationRow],
    answers: Sequence[Answer],
    baseline: Sequence[Answer] | None,
    generate: Generate,
    *,
    concurrency: int = 8,
    pauses: tuple[float, ...] = PAUSES_SECONDS,
) -> list[Judgement]:
    """A judgement per row, in order. A row without an answer is not judged; its judgement has the row's error."""

    async def sample(unit: tuple[int, int]) -> _Sample:
        row, number = unit
        flipped = metric.is_pairwise and metric.flips and (row + number) % 2 == 1
        values = _values(metric, rows[row], answers[row], baseline[row] if baseline else None, flipped)
        return await _ask_judge(metric, fill(metric.template, values), number, flipped, generate, pauses)

    missing = [_missing_answer(metric, answers[i], baseline[i] if baseline else None) for i in range(len(rows))]
    units = [(row, number) for row in range(len(rows)) if missing[row] is None for number in range(metric.samples)]
    samples = iter(await spread(units, sample, concurrency))
    return [
        Judgement(error=error) if error else _fold(metric, [next(samples) for _ in range(metric.samples)])
        for error in missing
    ]


def _missing_answer(metric: JudgeMetric, answer: Answer, baseline: Answer | None) -> dict[str, Any] | None:
    if answer.error:
        return answer.error
    if needs_baseline(metric):
        return Internal("There is no baseline answer.").to_status() if baseline is None else baseline.error
    return None


def needs_baseline(metric: JudgeMetric) -> bool:
    """Whether the template contains the other system's answer."""
    return bool(metric.baseline_names & set(PLACEHOLDER.findall(metric.template)))


def _values(
    metric: JudgeMetric, row: EvaluationRow, answer: Answer, baseline: Answer | None, flipped: bool
) -> dict[str, str]:
    """The value of each placeholder. Swapping exchanges the answers, not the template."""
    ours, theirs = answer.text, baseline.text if baseline else ""
    if flipped:
        ours, theirs = theirs, ours
    return {
        **row.fields,
        **dict.fromkeys(metric.baseline_names, theirs),
        **dict.fromkeys(metric.answer_names, ours),
    }


async def _ask_judge(
    metric: JudgeMetric, prompt: str, number: int, flipped: bool, generate: Generate, pauses: tuple[float, ...]
) -> _Sample:
    """One sample. After a reply that was cut off before its score, the judge is called again for the score only."""
    response = await ask(generate, _request(metric, prompt, number, metric.returns_raw), pauses=pauses)
    if not isinstance(response, GenerateContentResponse):
        return _Sample(error=response, is_flipped=flipped)
    text = _text(response)
    if metric.returns_raw:
        return _Sample(raw=text, is_flipped=flipped)
    value, explanation = _read(metric, text, flipped)
    if value is None:
        response = await ask(generate, _request(metric, prompt, number, False, brief=True), pauses=pauses)
        if not isinstance(response, GenerateContentResponse):
            return _Sample(error=response, is_flipped=flipped)
        value, _ = _read(metric, _text(response), flipped)
    if value is None:
        return _Sample(error=Internal("The judge returned no valid score.").to_status(), is_flipped=flipped)
    return _Sample(value, explanation, text, flipped)


def _request(
    metric: JudgeMetric, prompt: str, number: int, free: bool, *, brief: bool = False
) -> GenerateContentRequest:
    """The request to the judge. `free` leaves the form of the reply to the template. Samples differ by seed; a single
    sample is greedy."""
    config = metric.config
    update: dict[str, Any] = {"seed": (config.seed or 0) + number, "candidate_count": None}
    if config.temperature is None:
        update["temperature"] = 1.0 if metric.samples > 1 else 0.0
    if config.max_output_tokens is None:
        update["max_output_tokens"] = JUDGE_TOKENS
    if not free:
        update |= {"response_mime_type": "application/json", "response_schema": reply_schema(metric, brief=brief)}
        advice = CHOICE_ADVICE if metric.is_pairwise else SCORE_ADVICE.format(range=metric.scale.advice())
        prompt = f"{prompt}\n\n{advice}"
    system = Content(parts=[Part(text=metric.system_instruction)]) if metric.system_instruction.strip() else None
    return GenerateContentRequest(
        contents=[Content(role="user", parts=[Part(text=prompt)])],
        system_instruction=system,
        generation_config=config.model_copy(update=update),
    )


def reply_schema(metric: JudgeMetric, *, brief: bool = False) -> dict[str, Any]:
    """The schema of a reply: an explanation and a score or choice; with `brief` only the latter."""
    verdict: dict[str, Any] = (
        {"choice": {"type": "STRING", "enum": [FIRST, SECOND, TIE]}}
        if metric.is_pairwise
        else {"score": metric.scale.schema()}
    )
    properties = verdict if brief else {"explanation": {"type": "STRING", "maxLength": EXPLANATION}, **verdict}
    names = list(properties)
    return {"type": "OBJECT", "properties": properties, "required": names, "propertyOrdering": names}


def _text(response: GenerateContentResponse) -> str:
    return reply_text(response.candidates[0].content) if response.candidates else ""


def _read(metric: JudgeMetric, text: str, flipped: bool) -> tuple[float | PairwiseChoice | None, str]:
    """The verdict and its explanation; None if the reply has no valid verdict."""
    reply = read_json(text)
    if not isinstance(reply, dict):
        return None, ""
    explanation = reply.get("explanation")
    words = explanation if isinstance(explanation, str) else ""
    if metric.is_pairwise:
        return _choice(metric, reply.get("choice"), flipped), words
    score = _score(metric.scale, reply.get("score"))
    return score, words


def _choice(metric: JudgeMetric, value: object, flipped: bool) -> PairwiseChoice | None:
    """The answer for FIRST or SECOND, which refer to the order in the template."""
    if value == TIE:
        return Choice.TIE
    if value not in (FIRST, SECOND):
        return None
    chose_candidate = (value == FIRST) == _candidate_is_first(metric)
    return Choice.CANDIDATE if chose_candidate != flipped else Choice.BASELINE


def _candidate_is_first(metric: JudgeMetric) -> bool:
    """Whether the judged model's answer is before the other one in the template."""
    names = PLACEHOLDER.findall(metric.template)
    return next(name in metric.answer_names for name in names if name in metric.answer_names | metric.baseline_names)


def _score(scale: ScoreScale, value: object) -> float | None:
    if isinstance(value, str) and re.fullmatch(r"-?\d+(\.\d+)?([eE][+-]?\d+)?", value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value) if scale.low <= value <= scale.high else None


def _fold(metric: JudgeMetric, samples: Sequence[_Sample]) -> Judgement:
    """One judgement from the samples of a row: the mean score, or the most frequent choice."""
    failed = [sample for sample in samples if sample.error]
    good = [sample for sample in samples if not sample.error]
    if not good:
        return Judgement(failed_samples=len(failed), error=failed[0].error)
    if metric.returns_raw:
        return Judgement(raw=tuple(sample.raw for sample in good), failed_samples=len(failed))
    values = tuple(sample.value for sample in good if sample.value is not None)
    flipped = tuple(sample.is_flipped for sample in good)
    if metric.is_pairwise:
        choice = choice_mode([value for value in values if isinstance(value, Choice)])
        explanation = next((s.explanation for s in good if s.value == choice), good[0].explanation)
        return Judgement(None, choice, explanation, values, flipped, (), len(failed))
    score = fmean(float(value) for value in values)
    nearest = min(good, key=lambda sample: abs(float(sample.value or 0.0) - score))
    return Judgement(score, None, nearest.explanation, values, flipped, (), len(failed))


def first_place_share(judgements: Sequence[Judgement], metric: JudgeMetric) -> float | None:
    """Among samples that preferred one answer, the share that preferred the first one. With flips, a value far from one
    half shows a preference for the position. None without such samples."""
    candidate_first = _candidate_is_first(metric)
    places: Counter[bool] = Counter()
    for judgement in judgements:
        for value, flipped in zip(judgement.samples, judgement.flipped, strict=True):
            if value is not Choice.TIE:
                places[((value is Choice.CANDIDATE) == candidate_first) != flipped] += 1
    return places[True] / places.total() if places else None
