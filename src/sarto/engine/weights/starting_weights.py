"""The weights that a run trains, as they are at the start of its job."""

from __future__ import annotations

from pathlib import Path

from sarto.contract.common import BaseWeights
from sarto.contract.tuning_run import ChosenParameters, RunSpec
from sarto.engine.models.adapter_shape import ALL_TARGETS, AdapterShape
from sarto.engine.models.decoder import Decoder
from sarto.engine.models.full_weights import FullWeights
from sarto.engine.models.lora import LoraAdapter
from sarto.engine.weights.merge import merged_tensors, weight_files
from sarto.engine.weights.peft import read_adapter


def starting_weights(decoder: Decoder, spec: RunSpec, chosen: ChosenParameters) -> LoraAdapter | FullWeights:
    """A new adapter, the adapter of the model that the job continues, or all weights of the base."""
    given = spec.parameters
    if given.is_full:
        weights = FullWeights(decoder)
        read_weights(weights, spec.base)
        return weights
    targets = tuple(t for t in ALL_TARGETS if t in given.target_modules) or ALL_TARGETS
    adapter = LoraAdapter(decoder, AdapterShape(chosen.rank, chosen.alpha, targets), given.seed)
    if spec.parent_adapter is not None:
        adapter.load(read_adapter(Path(spec.parent_adapter)))
    return adapter


def read_weights(weights: FullWeights, base: BaseWeights) -> None:
    """Fill the masters from the files of the base."""
    folder = Path(base.folder)
    weights.load(pair for name in weight_files(folder) for pair in merged_tensors(folder, name, None))
