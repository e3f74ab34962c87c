"""The data stage's answers outside a run, for the serving worker: the report on a dataset and the proof of a row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sarto.engine.data.machine import measure
from sarto.engine.data.prepare import Limits, Prepared, prepare
from sarto.engine.data.proof import show_row
from sarto.engine.data.report import data_report
from sarto.engine.data.tokenizer import ChatTokenizer
from sarto.schema.base_shape import BaseShape
from sarto.schema.runs import BaseWeights, DatasetQuestion, DatasetRef


def dataset_report(base: BaseWeights, tokenizer: ChatTokenizer, asked: DatasetQuestion) -> dict[str, Any]:
    """The report, also on data that a job would refuse: it says so. Raises InvalidArgument for no data at all."""
    training = _prepared(tokenizer, asked, asked.training, asked.max_training_examples, "training")
    validation = None
    if asked.validation is not None:
        validation = _prepared(tokenizer, asked, asked.validation, asked.max_validation_examples, "validation")
    shape = BaseShape.load(base.folder)
    machine = measure(torch.get_num_threads())
    limit = asked.max_tokens_per_example
    return data_report(
        training, validation, base, shape, asked.parameters, max_tokens=limit, machine=machine, refusal=asked.refusal
    )


def dataset_row(tokenizer: ChatTokenizer, asked: DatasetQuestion) -> dict[str, Any]:
    """The proof of the row. Raises NotFound when there is no such line."""
    path, name = Path(asked.training.path), asked.training.uri.rpartition("/")[2]
    return show_row(path, asked.row, tokenizer, name=name, data_format=asked.data_format)


def _prepared(
    tokenizer: ChatTokenizer, asked: DatasetQuestion, dataset: DatasetRef, max_examples: int, role: str
) -> Prepared:
    """However many rows cannot be used; whoever asks allowed the file's size."""
    return prepare(
        dataset,
        tokenizer,
        max_tokens=asked.max_tokens_per_example,
        cache_folder=asked.cache_folder,
        data_format=asked.data_format,
        limits=Limits(max_bytes=dataset.size_bytes, max_examples=max_examples, max_dropped_share=1.0, role=role),
    )
