"""Reports on datasets outside a run: the data report and the proof of a row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sarto.contract.base_shape import BaseShape
from sarto.contract.common import BaseWeights, DatasetRef
from sarto.contract.dataset_query import DatasetQuery
from sarto.engine.dataset.prepare import DatasetLimits, PreparedDataset, prepare
from sarto.engine.dataset_report.data_report import data_report
from sarto.engine.dataset_report.forecast import Machine
from sarto.engine.dataset_report.mask_proof import show_row
from sarto.engine.rendering.tokenizer import ChatTokenizer


def dataset_report(
    base: BaseWeights, tokenizer: ChatTokenizer, query: DatasetQuery, machine: Machine
) -> dict[str, Any]:
    """The data report, also for data that a job would refuse; it has the refusal. Raises InvalidArgument for empty
    data."""
    training = _prepared(tokenizer, query, query.training, query.max_training_examples, "training")
    validation = None
    if query.validation is not None:
        validation = _prepared(tokenizer, query, query.validation, query.max_validation_examples, "validation")
    shape = BaseShape.load(base.folder)
    limit = query.max_tokens_per_example
    return data_report(
        training, validation, base, shape, query.parameters, max_tokens=limit, machine=machine, past=query.past_runs,
        refusal=query.refusal,
    )  # fmt: skip


def dataset_row(tokenizer: ChatTokenizer, query: DatasetQuery) -> dict[str, Any]:
    """The mask proof of the row. Raises NotFound when there is no such line."""
    path, name = Path(query.training.path), query.training.uri.rpartition("/")[2]
    return show_row(path, query.row, tokenizer, name=name, data_format=query.data_format)


def _prepared(
    tokenizer: ChatTokenizer, query: DatasetQuery, dataset: DatasetRef, max_examples: int, role: str
) -> PreparedDataset:
    """The dataset with any share of unusable rows; the file's size was checked by the caller."""
    return prepare(
        dataset,
        tokenizer,
        max_tokens=query.max_tokens_per_example,
        cache_folder=query.cache_folder,
        data_format=query.data_format,
        limits=DatasetLimits(max_bytes=dataset.size_bytes, max_examples=max_examples, max_dropped_share=1.0, role=role),
    )
