"""evaluateDataset, as far as it is checked before anything runs."""

from __future__ import annotations

import pytest

from sarto.control.context import Control
from sarto.control.evaluation import dataset_evaluations
from sarto.errors import InvalidArgument
from sarto.schema.evaluation_requests import EvaluateDatasetRequest
from tests.control.homes import PARENT, member


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"x" * (17 << 20), "more than 16 MiB"),
        (b"[" + b"[]," * 200_000 + b"1]\n", "more than 100000 values"),
        (b"[" * 5000 + b"\n", "nested deeper than 100 levels"),
    ],
    ids=["long", "wide", "deep"],
)
def test_a_first_line_that_would_take_the_interpreter_is_not_read(control: Control, line: bytes, words: str) -> None:
    control.buckets.put_bytes("data", "line.jsonl", line)
    asked = {
        "dataset": {"gcsSource": {"uris": ["gs://data/line.jsonl"]}},
        "metrics": [{"exactMatchSpec": {}}],
        "outputConfig": {"gcsDestination": {"outputUriPrefix": "gs://data/out"}},
    }
    with pytest.raises(InvalidArgument, match=words):
        dataset_evaluations.evaluate(control, member(control), PARENT, EvaluateDatasetRequest.read(asked))
