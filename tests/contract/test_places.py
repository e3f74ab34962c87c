"""Names of files in specs: the same on every machine, and never out of their place."""

from __future__ import annotations

from pathlib import Path

import pytest

from sarto.contract.common import BaseWeights, DatasetRef, EvaluationPlan, JudgeModel, TuningParameters
from sarto.contract.places import Places
from sarto.contract.programs import SPECS, files_of, read_spec
from sarto.contract.tuning_run import RunSpec

HERE = Places({"home": Path("/srv/sarto"), "models": Path("/srv/models"), "workspace": Path("/srv/sarto/runs/7")})


def a_spec() -> RunSpec:
    base = BaseWeights(name="base", folder="models/smol", digest="d")
    judge = JudgeModel(base=base, adapter_folder="home/adapters/abc", adapter_digest="abc")
    return RunSpec(
        job="projects/1/locations/us-central1/tuningJobs/7", epoch=3, run_folder="workspace/3", method="supervised",
        base=base, parent_adapter="home/adapters/parent",
        training_dataset=DatasetRef(uri="gs://b/train.jsonl", path="workspace/data/training.jsonl", size_bytes=9),
        parameters=TuningParameters(rank=4, alpha=8.0), max_tokens_per_example=64, cache_folder="home/cache/tokens/1",
        threads=1, evaluation=EvaluationPlan(judges={"grader": judge}),
    )  # fmt: skip


def test_a_name_is_a_path_of_its_place_on_each_machine() -> None:
    there = Places.under(Path("/node"))
    for name in ("workspace/data/training.jsonl", "models/smol", "home", "home/adapters/abc"):
        assert HERE.name(HERE.path(name)) == name
        assert there.path(name) == Path("/node", name)
    assert HERE.path("workspace/data") == Path("/srv/sarto/runs/7/data")
    assert HERE.name("/srv/sarto/runs/7/data") == "workspace/data", "the nearest place has it"
    assert Places.parse(HERE.arguments()) == HERE


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "", "nowhere/x", "home/../etc", "home//x", "home/./x", "home/x/..", ".."]
)
def test_a_name_leads_into_its_place_only(name: str) -> None:
    with pytest.raises(ValueError, match="not the name of a file"):
        HERE.path(name)


def test_a_path_outside_of_all_places_has_no_name() -> None:
    with pytest.raises(ValueError, match="in none of the places"):
        HERE.name("/srv/other")


def test_a_spec_that_is_read_has_paths_wherever_it_had_names(tmp_path: Path) -> None:
    spec = a_spec()
    file = tmp_path / "spec.json"
    file.write_text(spec.model_dump_json())
    located = read_spec(RunSpec, [str(file), *HERE.arguments()])
    assert located.base.folder == "/srv/models/smol" and located.training_dataset.path.startswith("/srv/sarto/runs/7/")
    assert located.evaluation is not None
    assert located.evaluation.judges["grader"].adapter_folder == "/srv/sarto/adapters/abc"
    assert located.base_source == "" and located.resume_folder is None and located.parent_adapter is not None
    assert HERE.named(located) == spec
    files = files_of("sarto.engine.programs.tune", [str(file), *HERE.arguments()])
    assert set(files.read) == {
        str(file), "/srv/models/smol", "/srv/sarto/adapters/parent", "/srv/sarto/adapters/abc",
        "/srv/sarto/runs/7/data/training.jsonl",
    }  # fmt: skip
    assert files.write == ["/srv/sarto/runs/7/3"] and files.scratch == ["/srv/sarto/cache/tokens/1"]


def test_a_program_refuses_a_spec_with_a_path(tmp_path: Path) -> None:
    file = tmp_path / "spec.json"
    file.write_text(a_spec().model_copy(update={"cache_folder": "/tmp/cache"}).model_dump_json())
    with pytest.raises(ValueError, match="/tmp/cache"):
        read_spec(RunSpec, [str(file), *HERE.arguments()])


@pytest.mark.parametrize("program", SPECS)
def test_a_program_is_given_no_file_but_by_a_name(program: str) -> None:
    """All that `files` lists is renamed by `named`; a field that is forgotten there would stay a path."""
    fields = SPECS[program].model_fields
    folders = {name for name in fields if name.endswith(("folder", "_path", "rows", "held_out", "_source", "_adapter"))}
    unnamed = {name for name in folders - {"max_rows"} if "FileName" not in str(SPECS[program].__annotations__[name])}
    assert folders and unnamed == set()
