"""The data report: everything there is to know about a dataset before a second is spent on it, as one JSON object.

Built from token stores alone, so a run writes it for nothing and `sarto data check` needs no run. Doors only print it.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
from pydantic.alias_generators import to_camel

from sarto.engine.data.automatic import DataShape, choose
from sarto.engine.data.duplicates import find_duplicates, find_overlap
from sarto.engine.data.forecast import Machine, forecast
from sarto.engine.data.prepare import SHOWN_FAULTS, Limits, Prepared, check_usable
from sarto.errors import InvalidArgument
from sarto.schema.base_shape import BaseShape
from sarto.schema.runs import BaseWeights, TuningParameters
from sarto.wording import counted

CONTEXTS = (512, 1024, 2048, 4096, 8192, 16_384, 32_768, 131_072)
EMPTY_REPLIES = ("a turn without text", "a reply without text", "no text")
THEIRS = ("labels", "sample_contents", "scripts", "languages", "formats", "roles", "counts")
"""Keys whose values have the user's words as keys."""


def data_report(
    training: Prepared,
    validation: Prepared | None,
    base: BaseWeights,
    shape: BaseShape,
    given: TuningParameters,
    *,
    max_tokens: int,
    machine: Machine | None = None,
    limits: Limits = Limits(),
    refusal: str = "",
) -> dict[str, Any]:
    """The report, in the API's spelling. Without `machine` it forecasts steps but neither time nor memory.

    `refusal`: why no job would be accepted on this data, if that is known already."""
    store = training.store
    chosen = choose(DataShape.of(store), given, shape.parameters)
    refusal = refusal or _refusal(training, validation, limits)
    report = {
        "dataset": _dataset(training),
        "base_model": {"name": base.name, "digest": base.digest, "max_tokens_per_example": max_tokens},
        "is_usable": not refusal,
        "statistics": training.stats(chosen.total_steps).model_dump(),
        "over_long": _over_long(training),
        "duplicates": asdict(find_duplicates(store)) if len(store) else None,
        "automatic": chosen.model_dump(),
        "forecast": forecast(DataShape.of(store), chosen, shape, machine),
    }
    if validation is not None:
        report["validation"] = {**_dataset(validation), "overlap": asdict(find_overlap(store, validation.store))}
    report["findings"] = findings(report, refusal)
    spelled: dict[str, Any] = _spell(report)
    return spelled


def _refusal(training: Prepared, validation: Prepared | None, limits: Limits) -> str:
    """Why a job would not begin with this data, empty if it would."""
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
    "one_token": ("reply is a single token", "replies are a single token"),
}  # fmt: skip
"""What is said of one, and of many."""


def findings(report: dict[str, Any], refusal: str = "") -> list[dict[str, str]]:
    """What a person should look at, the worst first: `level` is error, warning or note."""
    found: list[tuple[str, str]] = []
    dataset, repeated = report["dataset"], report["duplicates"]

    def say(level: str, count: int, what: str) -> None:
        if count:
            found.append((level, counted(count, *FINDINGS[what])))

    if refusal:
        found.append(("error", f"a job on this data would be refused: {refusal}"))
    say("warning", dataset["faults"]["count"], "dropped")
    say("error", dataset["replies"]["without_loss"], "without_loss")
    say("error", dataset["tokens"]["double_bos"], "double_bos")
    say("error", dataset["tokens"]["no_end_of_turn"], "no_end_of_turn")
    for kind, count in dataset["secrets"]["counts"].items():
        level = "note" if kind == "e-mail address" else "warning"
        if count:
            found.append((level, f"{count:,} found of what looks like: {kind}"))
    if repeated:
        say("warning", repeated["exact_count"], "exact")
        say("warning", repeated["same_prompt_count"], "same_prompt")
        say("note", repeated["near_count"], "near")
    if "validation" in report:
        say("warning", report["validation"]["overlap"]["same_prompts"], "overlap")
        say("warning", report["validation"]["faults"]["count"], "validation_dropped")
    say("note", dataset["replies"]["one_token"], "one_token")
    order = ("error", "warning", "note")
    return [{"level": level, "message": words} for level, words in sorted(found, key=lambda each: order.index(each[0]))]


def _dataset(prepared: Prepared) -> dict[str, Any]:
    columns, facts = prepared.store.columns, prepared.store.facts
    counts = facts.counts
    secrets = [{"line": line, "kind": kind, "begins": begins} for line, kind, begins in facts.secrets[:SHOWN_FAULTS]]
    return {
        "uri": prepared.dataset.uri,
        "size_bytes": prepared.dataset.size_bytes,
        "rows": len(columns["lines"]) + len(facts.faults),
        "used_rows": len(columns["lines"]),
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
            "one_token": int((columns["learned_of"] <= 2).sum()),  # the token and the end of the turn
            "without_loss": int((columns["learned_of"] == 0).sum()),
        },
        "tokens": counts.get("tokens", {}),
        "scripts": counts.get("scripts", {}),
        "languages": counts.get("languages", {}),
        "labels": _labels(facts.labels, len(columns["lines"])),
        "secrets": {"counts": counts.get("secrets", {}), "shown": secrets},
    }


def _labels(labels: dict[str, int] | None, rows: int) -> dict[str, int] | None:
    """Short replies by frequency, where they repeat enough to be labels."""
    if labels is None or "" in labels or len(labels) * 3 > rows:
        return None
    return dict(sorted(labels.items(), key=lambda item: -item[1]))


def _over_long(prepared: Prepared) -> dict[str, int]:
    """Rows that would not fit, by context length; those dropped for their length included."""
    lengths = np.concatenate([prepared.store.lengths, prepared.store.columns["too_long"]])
    return {str(context): int((lengths > context).sum()) for context in CONTEXTS}


def _spell(value: Any) -> Any:
    """Our keys in camelCase; the user's stay as they are."""
    if isinstance(value, list | tuple):
        return [_spell(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    return {to_camel(key): inner if key in THEIRS else _spell(inner) for key, inner in value.items()}
