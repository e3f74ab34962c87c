"""A processor is tried before it is trusted: wrong products are seen, fewer instructions taken, and both are kept."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest

from sarto.contract.common import Instructions
from sarto.control.executors.executor import clean_environment
from sarto.control.executors.local import LocalExecutor
from sarto.errors import FailedPrecondition, Unavailable
from sarto.system import failpoints
from sarto.system.processor import LEVELS, VARIABLE, KernelCheck, Processor
from tests.engine.programs.test_tune import make_spec
from tests.specs import launch
from tests.tiny import make_tiny_base


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(make_tiny_base(tmp_path_factory.mktemp("base") / "tiny").folder)


def processor(memory: Path, *wrong: str, **environment: str) -> Processor:
    """This one, with products made wrong at some levels."""
    planted = {failpoints.VARIABLE: f"!wrong products at: {' '.join(wrong)}"} if wrong else {}
    return Processor(clean_environment(os.environ) | planted | environment, memory / "processor.json")


def test_a_processor_that_multiplies_right_is_tried_once(base: Path, tmp_path: Path) -> None:
    assert processor(tmp_path).verdict(base) == KernelCheck(LEVELS[0])
    (key,) = json.loads((tmp_path / "processor.json").read_text())
    assert "torch" in key and "[32, 64]" not in key and "(32, 64)" in key
    elsewhere = {key: {"level": "AVX2", "faults": {"ALL": "as it was found before"}}}
    (tmp_path / "processor.json").write_text(json.dumps(elsewhere))
    assert processor(tmp_path).verdict(base).level == "AVX2"  # nothing was tried again
    assert processor(tmp_path, ATEN_CPU_CAPABILITY="default").verdicts() == []  # that is another processor


@pytest.mark.slow
def test_wrong_products_are_seen_and_fewer_instructions_taken(base: Path, tmp_path: Path) -> None:
    here = processor(tmp_path, *LEVELS[:2])
    assert here.environment()[VARIABLE] == "ALL"
    found = here.verdict(base)
    assert found.level == LEVELS[2]
    assert list(found.faults) == list(LEVELS[:2])
    assert "a product of training with 32 inputs" in found.words and "up to AVX512_CORE" in found.words
    environment = here.environment(base)
    assert environment[VARIABLE] == LEVELS[2] and failpoints.VARIABLE not in environment
    assert here.environment()[VARIABLE] == LEVELS[2]  # for whatever base comes next


def test_what_the_operator_allows_is_where_it_begins(base: Path, tmp_path: Path) -> None:
    assert processor(tmp_path, **{VARIABLE: "avx512_core"}).verdict(base).level == "AVX512_CORE"


@pytest.mark.slow
def test_a_processor_that_never_multiplies_right_is_refused_by_name_and_tried_again(base: Path, tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match=r"multiplies wrong with every set .*ALL: a product.*AVX2: a product"):
        processor(tmp_path, *LEVELS).verdict(base)
    assert not (tmp_path / "processor.json").exists()


def test_a_trial_that_breaks_off_says_nothing_about_the_processor(base: Path, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="could not be tried"):
        processor(tmp_path, PYTHONHOME="/nowhere").verdict(base)
    assert not (tmp_path / "processor.json").exists()


def test_a_damaged_memory_is_made_anew(base: Path, tmp_path: Path) -> None:
    (tmp_path / "processor.json").write_text('{"half')
    assert processor(tmp_path).verdict(base).level == "ALL"
    assert len(processor(tmp_path).verdicts()) == 1


def test_a_run_gets_the_instructions_that_its_spec_names(tmp_path: Path) -> None:
    spec = make_spec(make_tiny_base(tmp_path / "tiny"), tmp_path, instructions=Instructions(level="AVX2", words="few"))
    print_it = f"import os; print(os.environ['{VARIABLE}'])"
    executor = LocalExecutor(clean_environment(os.environ), [sys.executable, "-c", print_it])
    run = executor.start(launch("run", Path(spec.run_folder) / "spec.json", tmp_path / "log"))
    while run.poll() is None:
        time.sleep(0.01)
    run.stop(0.0)
    assert (tmp_path / "log").read_text() == "AVX2\n"
