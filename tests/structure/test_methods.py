"""A tuning method is a seam: its own files and the tables name it, and nobody else asks which method it is."""

from __future__ import annotations

import re
from typing import get_args

from sarto.contract.tuning_run import SERIES, EvalMetrics, StepMetrics
from sarto.control.runs.progress import METRIC_NAMES
from sarto.conversations.examples import READERS, DataFormat
from sarto.engine.tuning.methods import METHODS
from sarto.schema.tuning_jobs import SPECS, TuningDataStats, TuningJob
from tests.structure.sources import modules

SUPERVISED = re.compile(
    r"supervised_tuning|[sS]upervisedTuning|SupervisedHyperParameters|methods\.supervised|\bSUPERVISED\b|[\"']supervised[\"']"
)
MAY_NAME = {
    "sarto.contract.tuning_run": "the table of time series",
    "sarto.schema.tuning_jobs": "the wire form of its spec, and the table of specs",
    "sarto.engine.tuning.methods": "the table of methods",
    "sarto.engine.tuning.methods.supervised": "the method itself",
    "sarto.engine.tuning.methods.distillation": "is that method, on the answers of a teacher",
    "sarto.api.vertex.unimplemented": "says in words what to use instead of a method that is not built",
    "sarto.cli.docs.support": "notes on the fields of its spec",
}


def test_only_its_own_files_and_the_two_tables_name_the_supervised_method() -> None:
    naming = {name for name, path in modules().items() if SUPERVISED.search(path.read_text(encoding="utf-8"))}
    assert naming - MAY_NAME.keys() == set(), "ask the job for its tuning_spec, or the method for what it does"
    assert MAY_NAME.keys() - naming == set(), "shorten the list"


def test_the_tables_know_the_same_methods() -> None:
    assert list(SPECS) == list(METHODS) == list(SERIES)
    for name, row in SPECS.items():
        method = METHODS[name]
        assert row.method == name
        assert row.field in TuningJob.ONEOFS["tuning_spec"] and row.field in TuningJob.model_fields
        assert row.data_stats in TuningDataStats.model_fields
        read = set(method.data_formats) - ({"auto"} if row.data_format == "prompts" else set())  # once labelled
        assert {row.format_for("open"), row.format_for("translation")} == read
        assert method.series is SERIES[name]
        assert set(method.series.steps.values()) <= StepMetrics.model_fields.keys()
        assert set(method.series.evaluations.values()) <= EvalMetrics.model_fields.keys()


def test_every_form_of_data_has_a_reader() -> None:
    assert READERS.keys() == set(get_args(DataFormat))


def test_the_time_series_keep_their_ids() -> None:
    assert METRIC_NAMES[:11] == (
        "/train_total_loss", "/train_fraction_of_correct_next_step_preds", "/train_num_predictions",
        "/eval_total_loss", "/eval_fraction_of_correct_next_step_preds", "/eval_num_predictions",
        "/eval_exact_match", "/eval_chrf", "/eval_rougeL", "/eval_json_valid", "/eval_json_field_accuracy",
    )  # fmt: skip
