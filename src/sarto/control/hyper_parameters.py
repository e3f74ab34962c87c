"""What the hyper-parameters of a job may be, by the model it begins with."""

from __future__ import annotations

import math

from sarto.control.faults import PARAMETERS, SPEC, Faults
from sarto.control.tuning_sources import Source
from sarto.schema.tuning_jobs import AdapterSize, SupervisedTuningSpec, TuningMode


def check(spec: SupervisedTuningSpec, source: Source | None, faults: Faults) -> int:
    """Checks all hyper-parameters; gives the rank, 0 while it is not known."""
    if spec.tuning_mode is TuningMode.TUNING_MODE_FULL:
        faults.refuse(f"{SPEC}.tuning_mode", "Full tuning is not built yet; use TUNING_MODE_PEFT_ADAPTER.")
    given = spec.hyper_parameters
    if given is None:
        return source.rank if source else 0
    for name, value in (
        ("epoch_count", given.epoch_count),
        ("learning_rate_multiplier", given.learning_rate_multiplier),
        ("learning_rate", given.learning_rate),
        ("batch_size", given.batch_size),
    ):
        if value is not None and not (value > 0 and math.isfinite(value)):
            faults.add(f"{PARAMETERS}.{name}", f"{value} is not allowed; give a number greater than 0.")
    if given.learning_rate is not None and given.learning_rate_multiplier is not None:
        faults.add(f"{PARAMETERS}.learning_rate", "Give learningRate or learningRateMultiplier, not both.")
    if source is None:
        return 0
    if source.entry.rules.kind != "open":
        for name, value in (("learning_rate", given.learning_rate), ("batch_size", given.batch_size)):
            if value is not None:
                hint = " Use learningRateMultiplier." if name == "learning_rate" else ""
                faults.add(f"{PARAMETERS}.{name}", f"This is for open models, not for {source.base_model}.{hint}")
    return _rank(given.adapter_size, source, faults)


def _rank(size: AdapterSize | None, source: Source, faults: Faults) -> int:
    if size is None or size.is_unspecified:
        return source.rank
    allowed = [source.rank] if source.parent else source.entry.rules.adapter_sizes
    if size.rank not in allowed:
        listed = ", ".join(str(AdapterSize.of_rank(rank)) for rank in sorted(allowed))
        why = " (the size of the model it continues)" if source.parent else ""
        faults.add(f"{PARAMETERS}.adapter_size", f"{size} is not supported for {source.base_model}; use {listed}{why}.")
    return size.rank
