"""The data report: all facts about a dataset before training, as one JSON object.

Built from token stores only, so a run needs no further pass for it and `sarto data check` needs no run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from pydantic.alias_generators import to_camel

from sarto.contract.base_shape import BaseShape
from sarto.contract.common import BaseWeights, TuningParameters
from sarto.contract.tuning_run import ChosenParameters, PastRun
from sarto.engine.dataset.default_parameters import DataShape, choose
from sarto.engine.dataset.prepare import SHOWN_FAULTS, DatasetLimits, PreparedDataset, check_usable
from sarto.engine.dataset_report.duplicates import find_duplicates, find_overlap
from sarto.engine.dataset_report.forecast import Machine, forecast
from sarto.errors import InvalidArgument
from sarto.plurals import counted

CONTEXTS = (512, 1024, 2048, 4096, 8192, 16_384, 32_768, 131_072)
WITHOUT_ANSWERS = "the forecast has neither the tokens of the teacher's answers nor the time in which it gives them"
EMPTY_REPLIES = ("a turn without text", "a reply without text", "no text")
ONE_SIDED = 0.8
"""The share of pairs from which a finding names the length of the preferred replies."""
THEIRS = ("labels", "sample_contents", "sample_pairs", "scripts", "languages", "formats", "roles", "counts")
"""Keys whose values have words of the user as keys."""
Array = np.ndarray[Any, np.dtype[Any]]


def data_report(
    training: PreparedDataset,
    validation: PreparedDataset | None,
    base: BaseWeights,
    shape: BaseShape,
    requested: TuningParameters,
    *,
    max_tokens: int,
    machine: Machine | None = None,
    past: Sequence[PastRun] = (),
    limits: DatasetLimits = DatasetLimits(),
    refusal: str = "",
    chosen: ChosenParameters | None = None,
) -> dict[str, Any]:
    """The report, in the API's spelling. Without `machine` it forecasts steps but neither time nor memory. `past` are
    runs, newest first, that correct the time. `chosen` are the parameters of the run if they are known.

    `refusal` is the reason for which a job would refuse this data, if it is already known."""
    store = training.store
    chosen = chosen or choose(DataShape.of(store), requested, shape.parameters)
    refusal = refusal or _refusal(training, validation, limits)
    report = {
        "dataset": _dataset(training),
        "base_model": {"name": base.name, "digest": base.digest, "max_tokens_per_example": max_tokens},
        "is_usable": not refusal,
        "statistics": training.stats(chosen.total_steps).model_dump(),
        "over_long": _over_long(training),
        "duplicates": asdict(find_duplicates(store)) if len(store) else None,
        "automatic": chosen.model_dump(),
        "forecast": forecast(DataShape.of(store), chosen, shape, machine, past, base.digest),
    }
    if validation is not None:
        report["validation"] = {**_dataset(validation), "overlap": asdict(find_overlap(store, validation.store))}
    report["findings"] = findings(report, refusal)
    spelled: dict[str, Any] = _spell(report)
    return spelled


def _refusal(training: PreparedDataset, validation: PreparedDataset | None, limits: DatasetLimits) -> str:
    """The reason for which a job would refuse this data; empty if it would not."""
    try:
        check_usable(training, validation, limits)
    except InvalidArgument as error:
        return error.message.splitlines()[0].removesuffix(" The first:")
    return ""


FINDINGS = {
    "dropped": ("row cannot be used and is dropped; it is listed with its reason",
                "rows cannot be used and are dropped; each is listed with its reason"),
    "without_loss": ("row has no token to learn", "rows have no token to learn"),
    "double_bos": ("row begins with two begin-of-text tokens", "rows begin with two begin-of-text tokens"),
    "no_end_of_turn": ("row does not end with a token at which serving stops",
                       "rows do not end with a token at which serving stops"),
    "exact": ("row repeats an earlier one", "rows repeat an earlier one"),
    "same_prompt": ("row gives another reply to a prompt that came before",
                    "rows give another reply to a prompt that came before"),
    "near": ("row is nearly the same as another", "rows are nearly the same as another"),
    "overlap": ("validation row has its prompt in training", "validation rows have their prompt in training"),
    "validation_dropped": ("validation row cannot be used and is dropped",
                           "validation rows cannot be used and are dropped"),
    "undeclared": ("row calls a function that it does not declare; served without the declaration, a call is text",
                   "rows call functions that they do not declare; served without the declaration, a call is text"),
    "arguments": ("row has a call whose arguments are not those its function declares",
                  "rows have calls whose arguments are not those their function declares"),
    "one_token": ("reply is a single token", "replies are a single token"),
    "with_reply": ("row has a reply, which is left out: the teacher answers instead",
                   "rows have a reply, which is left out: the teacher answers instead"),
}  # fmt: skip
"""The message for one row, and for several."""


def findings(report: dict[str, Any], refusal: str = "") -> list[dict[str, str]]:
    """Points to check, the worst first: `level` is error, warning or note."""
    notes: list[tuple[str, str]] = []
    dataset, repeated = report["dataset"], report["duplicates"]

    def say(level: str, count: int, what: str) -> None:
        if count:
            notes.append((level, counted(count, *FINDINGS[what])))

    if refusal:
        notes.append(("error", f"a job on this data would be refused: {refusal}"))
    if report["automatic"]["beta"] == 0:
        notes.append(("warning", "beta is 0: the loss does not depend on the model, so nothing is learned"))
    for which in ("shorter", "longer") if dataset["pairs"] else ():
        share = dataset["pairs"][f"chosen_is_{which}"]
        if share >= ONE_SIDED:
            notes.append(("note", f"the preferred reply is the {which} one in {share:.0%} of the rows"))
    say("warning", dataset["faults"]["count"], "dropped")
    say("error", dataset["replies"]["without_loss"], "without_loss")
    say("error", dataset["tokens"].get("double_bos", 0), "double_bos")
    say("error", dataset["tokens"].get("no_end_of_turn", 0), "no_end_of_turn")
    for kind, count in dataset["secrets"]["counts"].items():
        level = "note" if kind == "e-mail address" else "warning"
        if count:
            notes.append((level, f"{count:,} found that look like: {kind}"))
    if repeated:
        say("warning", repeated["exact_count"], "exact")
        say("warning", repeated["same_prompt_count"], "same_prompt")
        say("note", repeated["near_count"], "near")
    if "validation" in report:
        say("warning", report["validation"]["overlap"]["same_prompts"], "overlap")
        say("warning", report["validation"]["faults"]["count"], "validation_dropped")
    for kind in ("undeclared", "arguments"):
        say("warning", dataset["calls"].get(kind, 0), kind)
    say("note", dataset["replies"]["one_token"], "one_token")
    if dataset["prompts"] is not None:
        say("note", dataset["prompts"]["with_reply"], "with_reply")
        notes.append(("note", WITHOUT_ANSWERS))
    order = ("error", "warning", "note")
    return [{"level": level, "message": words} for level, words in sorted(notes, key=lambda each: order.index(each[0]))]


def _dataset(prepared: PreparedDataset) -> dict[str, Any]:
    columns, facts = prepared.store.columns, prepared.store.facts
    counts, is_prompts = facts.counts, prepared.store.holds_prompts
    secrets = [{"line": line, "kind": kind, "begins": begins} for line, kind, begins in facts.secrets[:SHOWN_FAULTS]]
    return {
        "uri": prepared.dataset.uri,
        "size_bytes": prepared.dataset.size_bytes,
        "rows": prepared.example_count + len(facts.faults),
        "used_rows": prepared.example_count,
        "token_rows": len(prepared.store),
        "faults": {
            "count": len(facts.faults),
            "shown": [fault.to_json() for fault in prepared.faults[:SHOWN_FAULTS]],
        },
        "formats": counts.get("formats", {}),
        "roles": counts.get("roles", {}),
        "turns": {key: counts["turns"][key] for key in sorted(counts.get("turns", {}), key=int)},
        "replies": {
            "empty": sum(fault[2] in EMPTY_REPLIES for fault in facts.faults),
            # a token and the end of the turn
            "one_token": 0 if is_prompts else int((columns["learned_of"] <= 2).sum()),
            "without_loss": 0 if is_prompts else int((columns["learned_of"] == 0).sum()),
        },
        "tokens": counts.get("tokens", {}),
        "calls": counts.get("calls", {}),
        "scripts": counts.get("scripts", {}),
        "languages": counts.get("languages", {}),
        "labels": _labels(facts.labels, prepared.example_count),
        "secrets": {"counts": counts.get("secrets", {}), "shown": secrets},
        "pairs": _pairs(columns["learned_of"]) if prepared.store.holds_pairs else None,
        "prompts": counts["prompts"] if is_prompts else None,
    }


def _pairs(learned: Array) -> dict[str, float]:
    """Lengths of the completions in tokens; a model learns length first, before other differences of a pair."""
    chosen, rejected = learned[::2], learned[1::2]
    return {
        "mean_chosen_tokens": round(float(chosen.mean()), 2),
        "mean_rejected_tokens": round(float(rejected.mean()), 2),
        "chosen_is_shorter": round(float((chosen < rejected).mean()), 4),
        "chosen_is_longer": round(float((chosen > rejected).mean()), 4),
    }


def _labels(labels: dict[str, int] | None, rows: int) -> dict[str, int] | None:
    """Short replies by frequency, if they repeat often enough to be labels."""
    if labels is None or "" in labels or len(labels) * 3 > rows:
        return None
    return dict(sorted(labels.items(), key=lambda item: -item[1]))


def _over_long(prepared: PreparedDataset) -> dict[str, int]:
    """Rows that exceed each context length, including those dropped for their length."""
    lengths = np.concatenate([prepared.store.lengths, prepared.store.columns["too_long"]])
    return {str(context): int((lengths > context).sum()) for context in CONTEXTS}


def _spell(value: Any) -> Any:
    """Our keys in camelCase; the user's are unchanged."""
    if isinstance(value, list | tuple):
        return [_spell(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    return {to_camel(key): inner if key in THEIRS else _spell(inner) for key, inner in value.items()}
