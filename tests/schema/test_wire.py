"""Google's JSON rules: what is read, what is refused, what is written."""

import pytest
from pydantic import Field

from sarto.errors import InvalidArgument
from sarto.schema.tuning_jobs import TuningJob
from sarto.schema.wire import Boolean, Bytes, Double, Int32, Int64, Message, ProtoEnum, Struct, Text, Timestamp


class Size(ProtoEnum):
    SIZE_UNSPECIFIED = "SIZE_UNSPECIFIED"
    SMALL = "SMALL"
    LARGE = "LARGE"


class Inner(Message):
    epoch_count: Int64 | None = None
    size: Size | None = None
    small: Int32 | None = None
    rate: Double | None = None
    flag: Boolean | None = None
    raw: Bytes | None = None


class Outer(Message):
    SPELLINGS = {"inside": "inner"}
    ONEOFS = {"choice": ("text_choice", "inner_choice")}

    inner: Inner | None = None
    items: list[Inner] = Field(default_factory=list)
    labels: dict[str, Text] = Field(default_factory=dict)
    free: Struct | None = None
    moment: Timestamp | None = None
    name: Text = ""
    text_choice: Text = ""
    inner_choice: Inner | None = None


def faults(data: object) -> dict[str, str]:
    with pytest.raises(InvalidArgument) as caught:
        Outer.read(data, "outer")
    return {v.field: v.description for v in caught.value.violations}


def test_both_spellings_and_other_names_read_as_one_field():
    for key in ("epochCount", "epoch_count"):
        for outer in ("inner", "inside"):
            assert Outer.read({outer: {key: 3}}) == Outer(inner=Inner(epoch_count=3))


@pytest.mark.parametrize("value", [7, "7", 7.0])
def test_a_64_bit_integer_is_read_from_numbers_and_strings_and_written_as_string(value):
    message = Inner.read({"epochCount": value})
    assert message.epoch_count == 7
    assert message.to_json() == {"epochCount": "7"}


def test_enums_are_read_by_name_and_number_and_written_by_name():
    assert Inner.read({"size": 2}).to_json() == Inner.read({"size": "LARGE"}).to_json() == {"size": "LARGE"}


def test_an_unspecified_enum_is_an_absent_one_in_answers():
    assert Inner.read({"size": 0}).to_json() == {}


def test_numbers_that_do_not_fit_are_refused():
    assert set(faults({"inner": {"small": 2**31, "epochCount": 2**63}})) == {
        "outer.inner.small",
        "outer.inner.epoch_count",
    }


def test_doubles_take_the_words_of_proto_json():
    assert Inner.read({"rate": "Infinity"}).to_json() == {"rate": "Infinity"}
    assert Inner.read({"rate": "2.5"}).to_json() == {"rate": 2.5}


def test_every_fault_is_listed_at_once_with_a_snake_case_path():
    found = faults({"items": [{"epochCount": "x"}, {"flag": "yes"}], "labels": {"a": 1}, "zapValue": 1, "name": 5})
    assert set(found) == {
        "outer.items[0].epoch_count",
        "outer.items[1].flag",
        "outer.labels.a",
        "outer.zap_value",
        "outer.name",
    }
    assert found["outer.zap_value"] == 'Unknown name "zap_value" at "outer": Cannot find field.'


def test_a_field_given_in_two_spellings_is_refused():
    assert "twice" in faults({"inner": {}, "inside": {}})["outer"]


def test_two_members_of_a_oneof_are_refused_naming_both():
    message = faults({"textChoice": "a", "innerChoice": {}})["outer"]
    assert "'choice' is already set" in message and "innerChoice" in message


def test_null_means_absent():
    assert Outer.read({"inner": None, "name": None}) == Outer()


def test_empty_fields_are_not_written_but_a_set_empty_message_is():
    assert Outer.read({"inner": {}, "labels": {}, "items": [], "name": ""}).to_json() == {"inner": {}}


def test_keys_of_maps_and_free_objects_stay_as_they_are():
    data = {"labels": {"aB": "x", "a_b": "y"}, "free": {"camelKey": 1, "snake_key": {"x": None}}}
    assert Outer.read(data).to_json() == data


def test_times_are_written_in_utc_with_z():
    assert Outer.read({"moment": "2026-01-02T03:04:05+01:00"}).to_json() == {"moment": "2026-01-02T02:04:05.000000Z"}


def test_bytes_are_base64_in_either_alphabet():
    assert Inner.read({"raw": "_-8="}).to_json() == {"raw": "/+8="}


@pytest.mark.parametrize("value", ["text", 5, [1]])
def test_a_message_must_be_an_object(value):
    assert "object" in faults(value)["outer"]


def test_the_words_of_the_documentation_are_read():
    body = {
        "source_model": "gemini-2.0-flash-001",
        "supervised_tuning_spec": {
            "training_dataset": "gs://b/train.jsonl",
            "validation_dataset": "gs://b/val.jsonl",
            "hyper_parameters": {"epoch_count": 4, "adapter_size": "ADAPTER_SIZE_FOUR"},
        },
    }
    job = TuningJob.read(body, "tuning_job")
    assert job.base_model == "gemini-2.0-flash-001"
    assert job.to_json()["supervisedTuningSpec"] == {
        "trainingDatasetUri": "gs://b/train.jsonl",
        "validationDatasetUri": "gs://b/val.jsonl",
        "hyperParameters": {"epochCount": "4", "adapterSize": "ADAPTER_SIZE_FOUR"},
    }
