"""Checks of a reward config, with the path of every fault: at create of a job, and in
validateReinforcementTuningReward."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

from sarto.errors import FieldViolation, InvalidArgument
from sarto.rewards import template
from sarto.schema.evaluation import AutoraterConfig
from sarto.schema.rewards import (
    AutoraterScorer,
    CompositeReinforcementTuningRewardConfig,
    MatchOperation,
    ParseResponseConfig,
    RewardConfig,
    SingleReinforcementTuningRewardConfig,
    StringMatchExpression,
    StringMatchRewardScorer,
)
from sarto.system import outbound_http
from sarto.system.linear_regex import LinearPattern, PatternError

MOST_REWARDS = 16
MOST_NAME = 128
MOST_SNIPPET = 256 << 10
MOST_TEMPLATE = 100_000
"""Most characters of an expression or a prompt."""
EXAMPLE_VALUE = "0"
"""Stands for references when an expression is compiled at create."""
SINGLE, COMPOSITE = "single_reward_config", "composite_reward_config"


def config_faults(
    single: SingleReinforcementTuningRewardConfig | None,
    composite: CompositeReinforcementTuningRewardConfig | None,
    path: str,
    *,
    private_urls: bool = False,
) -> Iterator[FieldViolation]:
    """Every fault of a message's two fields for rewards, of which one is set; paths begin with `path`. `private_urls`
    is the setting `reward_private_addresses`."""
    prefix = f"{path}." if path else ""
    if single is not None:
        yield from _single_faults(single, f"{prefix}{SINGLE}", private_urls)
    elif composite is not None:
        yield from _composite_faults(composite, f"{prefix}{COMPOSITE}", private_urls)
    else:
        words = "Required field is not set: name a reward, in singleRewardConfig or compositeRewardConfig."
        yield FieldViolation(f"{prefix}{SINGLE}", words)


def references_of(config: RewardConfig) -> frozenset[str]:
    """The keys of `references` that every row must have."""
    if isinstance(config, CompositeReinforcementTuningRewardConfig):
        parts = [one.reward_config for one in config.weighted_reward_configs if one.reward_config is not None]
        return frozenset().union(*map(references_of, parts))
    return frozenset().union(*map(template.references, _templates(config)))


def _templates(config: SingleReinforcementTuningRewardConfig) -> Iterator[str]:
    if scorer := config.string_match_reward_scorer:
        json = scorer.json_match_expression
        expression = json.value_string_match_expression if json else scorer.string_match_expression
        yield expression.expression if expression else ""
    if judged := config.autorater_scorer:
        yield judged.autorater_prompt
        yield judged.exact_match_scorer.expression if judged.exact_match_scorer else ""


def judges_of(config: RewardConfig, path: str) -> Iterator[tuple[str, str]]:
    """The autoraters, each with the path of its name."""
    if isinstance(config, CompositeReinforcementTuningRewardConfig):
        for index, one in enumerate(config.weighted_reward_configs):
            if one.reward_config is not None:
                yield from judges_of(one.reward_config, f"{path}.weighted_reward_configs[{index}].reward_config")
    elif config.autorater_scorer and config.autorater_scorer.autorater_config:
        name = config.autorater_scorer.autorater_config.autorater_model
        yield f"{path}.autorater_scorer.autorater_config.autorater_model", name


def _composite_faults(
    config: CompositeReinforcementTuningRewardConfig, path: str, private_urls: bool
) -> Iterator[FieldViolation]:
    where, parts = f"{path}.weighted_reward_configs", config.weighted_reward_configs
    if not 1 <= len(parts) <= MOST_REWARDS:
        yield FieldViolation(where, f"Give 1 to {MOST_REWARDS} rewards; there are {len(parts)}.")
        return
    names = Counter(one.reward_config.name for one in parts if one.reward_config is not None)
    for index, one in enumerate(parts):
        here = f"{where}[{index}]"
        if one.weight is None:
            yield FieldViolation(f"{here}.weight", "Required field is not set.")
        elif not (math.isfinite(one.weight) and one.weight >= 0):
            yield FieldViolation(f"{here}.weight", "Must be a finite number, 0 or above.")
        if one.reward_config is None:
            yield FieldViolation(f"{here}.reward_config", "Required field is not set.")
            continue
        if names[one.reward_config.name] > 1:
            words = f'"{one.reward_config.name[:MOST_NAME]}" names {names[one.reward_config.name]} rewards'
            yield FieldViolation(f"{here}.reward_config.reward_name", f"{words}; give each a name of its own.")
        yield from _single_faults(one.reward_config, f"{here}.reward_config", private_urls)
    weights = [one.weight for one in parts if one.weight is not None]
    if len(weights) == len(parts) and not any(weight > 0 for weight in weights):
        yield FieldViolation(where, "All weights are 0; give a weight above 0.")


def _single_faults(
    config: SingleReinforcementTuningRewardConfig, path: str, private_urls: bool
) -> Iterator[FieldViolation]:
    name = config.reward_name
    if len(name) > MOST_NAME or "/" in name or not name.isprintable():
        words = f"Must be at most {MOST_NAME} printable characters without a slash."
        yield FieldViolation(f"{path}.reward_name", words)
    yield from _parse_faults(config.parse_response_config, f"{path}.parse_response_config")
    if config.string_match_reward_scorer is not None:
        yield from _string_match_faults(config.string_match_reward_scorer, f"{path}.string_match_reward_scorer")
    elif config.code_execution_reward_scorer is not None:
        where = f"{path}.code_execution_reward_scorer.python_code_snippet"
        yield from _snippet_faults(config.code_execution_reward_scorer.python_code_snippet, where)
    elif config.autorater_scorer is not None:
        yield from _autorater_faults(config.autorater_scorer, f"{path}.autorater_scorer")
    elif config.cloud_run_reward_scorer is not None:
        where = f"{path}.cloud_run_reward_scorer.cloud_run_uri"
        yield from _url_faults(config.cloud_run_reward_scorer.cloud_run_uri, where, private_urls)
    else:
        yield FieldViolation(path, f"No scorer is set; set one of {', '.join(config.ONEOFS['reward_scorer'])}.")


def _parse_faults(config: ParseResponseConfig | None, path: str) -> Iterator[FieldViolation]:
    if config is None:
        return
    where = f"{path}.regex_extract_expression"
    if config.extracts and not config.regex_extract_expression:
        yield FieldViolation(where, "Required field is not set: REGEX_EXTRACT needs an expression.")
    elif config.extracts:
        yield from _pattern_faults(config.regex_extract_expression, where)
    elif config.regex_extract_expression:
        yield FieldViolation(where, "The expression has no effect; set parse_type to REGEX_EXTRACT.")


def _string_match_faults(scorer: StringMatchRewardScorer, path: str) -> Iterator[FieldViolation]:
    yield from _two_rewards(scorer.correct_answer_reward, scorer.wrong_answer_reward, path)
    json = scorer.json_match_expression
    if json is not None:
        if not json.key_name:
            yield FieldViolation(f"{path}.json_match_expression.key_name", "Required field is not set.")
        where = f"{path}.json_match_expression.value_string_match_expression"
        yield from _expression_faults(json.value_string_match_expression, where)
    else:
        yield from _expression_faults(scorer.string_match_expression, f"{path}.string_match_expression")


def _expression_faults(expression: StringMatchExpression | None, path: str) -> Iterator[FieldViolation]:
    if expression is None:
        yield FieldViolation(path, "Required field is not set.")
        return
    if expression.match_operation is None or expression.match_operation.is_unspecified:
        words = "Required field is not set: use one of REGEX_CONTAINS, PARTIAL_MATCH, EXACT_MATCH."
        yield FieldViolation(f"{path}.match_operation", words)
    where = f"{path}.expression"
    wrong = list(_template_faults(expression.expression, where, frozenset()))
    yield from wrong
    if not wrong and expression.match_operation is MatchOperation.REGEX_CONTAINS:
        names = set(template.names(expression.expression))
        yield from _pattern_faults(template.fill(expression.expression, dict.fromkeys(names, EXAMPLE_VALUE)), where)


def _snippet_faults(snippet: str, path: str) -> Iterator[FieldViolation]:
    """Its syntax is checked where it runs: compiling text of a user can end a process."""
    if "evaluate" not in snippet:
        yield FieldViolation(path, "The snippet must define evaluate(example, response), which returns a number.")
    elif len(snippet) > MOST_SNIPPET:
        yield FieldViolation(path, f"{len(snippet):,} characters are given; at most {MOST_SNIPPET:,} are allowed.")


def _autorater_faults(scorer: AutoraterScorer, path: str) -> Iterator[FieldViolation]:
    judge = scorer.autorater_config or AutoraterConfig()
    where = f"{path}.autorater_config"
    if not judge.autorater_model:
        yield FieldViolation(f"{where}.autorater_model", "Required field is not set: name the model that scores.")
    if judge.sampling_count is not None and not 1 <= judge.sampling_count <= 32:
        yield FieldViolation(f"{where}.sampling_count", "Must be from 1 to 32.")
    if judge.flip_enabled:
        yield FieldViolation(f"{where}.flip_enabled", "A reward compares no two answers; leave it out.")
    where = f"{path}.autorater_prompt"
    yield from _template_faults(scorer.autorater_prompt, where, template.PROMPT_NAMES)
    if scorer.autorater_prompt and template.RESPONSE not in template.names(scorer.autorater_prompt):
        yield FieldViolation(where, "The prompt must contain the answer to score: write {{response}} there.")
    yield from _parse_faults(scorer.autorater_response_parse_config, f"{path}.autorater_response_parse_config")
    exact = scorer.exact_match_scorer
    if exact is not None:
        where = f"{path}.exact_match_scorer"
        yield from _two_rewards(exact.correct_answer_reward, exact.wrong_answer_reward, where)
        yield from _template_faults(exact.expression, f"{where}.expression", frozenset())
    elif scorer.parsed_response_conversion_scorer is None:
        words = "Set exactMatchScorer, or parsedResponseConversionScorer for a reply that is the number."
        yield FieldViolation(path, f"Nothing turns the autorater's reply into a reward. {words}")


def _url_faults(url: str, path: str, private_urls: bool) -> Iterator[FieldViolation]:
    if not url:
        yield FieldViolation(path, "Required field is not set.")
        return
    try:
        outbound_http.parse(url, path, private_urls, outbound_http.REWARD_SETTING)
    except InvalidArgument as error:
        yield from error.violations


def _two_rewards(correct: float | None, wrong: float | None, path: str) -> Iterator[FieldViolation]:
    """Faults of the rewards of a right and of a wrong answer. A missing one is 0."""
    values = {"correct_answer_reward": correct or 0.0, "wrong_answer_reward": wrong or 0.0}
    unusable = [name for name, value in values.items() if not math.isfinite(value)]
    for name in unusable:
        yield FieldViolation(f"{path}.{name}", "Must be a finite number.")
    first, second = (max(min(value, 1.0), -1.0) for value in values.values())
    if not unusable and first == second:
        words = f"Right and wrong answers get the same reward, {first:g} (rewards are limited to [-1, 1], and a missing"
        yield FieldViolation(f"{path}.correct_answer_reward", f"{words} one is 0); give two different rewards.")


def _template_faults(text: str, path: str, known: frozenset[str]) -> Iterator[FieldViolation]:
    """Faults of a template with references and these other placeholders."""
    if not text:
        yield FieldViolation(path, "Required field is not set.")
    elif len(text) > MOST_TEMPLATE:
        yield FieldViolation(path, f"{len(text):,} characters are given; at most {MOST_TEMPLATE:,} are allowed.")
    for name in sorted(set(template.names(text[:MOST_TEMPLATE])) - known):
        if not name.startswith(template.REFERENCE) or name == template.REFERENCE:
            there = ", ".join(f"{{{{{each}}}}}" for each in (*sorted(known), "references.KEY"))
            yield FieldViolation(path, f"Unknown placeholder {{{{{name[:MOST_NAME]}}}}}; there are {there}.")


def _pattern_faults(pattern: str, path: str) -> Iterator[FieldViolation]:
    try:
        LinearPattern(pattern)
    except PatternError as error:
        words = f"This is not a regular expression of RE2 (no look-around, no back-references): {error}."
        yield FieldViolation(path, words)
