"""The string match scorer: one reward for an answer that matches, another for any other answer."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

import orjson

from sarto.errors import DeadlineExceeded
from sarto.rewards import template
from sarto.rewards.failures import LIMIT, UNUSABLE
from sarto.rewards.scoring import Callers, Parsed, Scored
from sarto.schema.rewards import MatchOperation, StringMatchRewardScorer
from sarto.system.linear_regex import LinearPattern, PatternError


class StringMatch:
    def __init__(self, config: StringMatchRewardScorer, callers: Callers) -> None:
        self._callers = callers
        self._correct, self._wrong = config.correct_answer_reward or 0.0, config.wrong_answer_reward or 0.0
        self._key = None
        expression = config.string_match_expression
        if config.json_match_expression is not None:
            self._key = config.json_match_expression.key_name
            expression = config.json_match_expression.value_string_match_expression
        assert expression is not None, "the config has faults"
        self._expression = expression
        self._pattern = None
        if expression.match_operation is MatchOperation.REGEX_CONTAINS and not template.references(
            expression.expression
        ):
            self._pattern = LinearPattern(expression.expression)

    async def score(self, batch: Sequence[Parsed]) -> list[Scored]:
        return await self._callers.compute(lambda: [self._score(one) for one in batch])

    def _score(self, parsed: Parsed) -> Scored:
        began = time.perf_counter()
        target = parsed.text if self._key is None or parsed.text is None else _value(parsed.text, self._key)
        try:
            is_correct = target is not None and self._matches(target, parsed)
        except (DeadlineExceeded, PatternError) as error:
            kind = LIMIT if isinstance(error, DeadlineExceeded) else UNUSABLE
            words = f"The expression with the references of this row cannot be used: {error}"
            return Scored(None, kind, words, time.perf_counter() - began)
        return Scored(self._correct if is_correct else self._wrong, seconds=time.perf_counter() - began)

    def _matches(self, target: str, parsed: Parsed) -> bool:
        expression = template.fill(self._expression.expression, template.reference_values(parsed.sample.example))
        if self._expression.match_operation is MatchOperation.EXACT_MATCH:
            return target == expression
        if self._expression.match_operation is MatchOperation.PARTIAL_MATCH:
            return expression in target
        return (self._pattern or LinearPattern(expression)).is_in(target)


def _value(text: str, key: str) -> str | None:
    """The value of a first-level key as text: a string itself, other values as JSON. None without JSON or key."""
    try:
        found = orjson.loads(text)
    except ValueError:
        return None
    if not isinstance(found, dict) or key not in found:
        return None
    value = found[key]
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
