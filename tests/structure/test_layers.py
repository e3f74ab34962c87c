"""Imports run downhill, wherever they stand, and control and the API never load torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.structure.sources import imports, modules

WORDS = (
    "sarto.names",
    "sarto.errors",
    "sarto.plurals",
    "sarto.catalog",
    "sarto.system",
    "sarto.contract",
    "sarto.conversations",
    "sarto.rewards",
    "sarto.schema",
)
WIRE_OF_CONTROL = ("tuning_jobs", "models")
"""Schema files that the engine must not know: it speaks the run contract."""

MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "sarto.names": ("sarto.errors",),
    "sarto.errors": (),
    "sarto.plurals": (),
    "sarto.configuration": ("sarto.errors",),
    "sarto.settings": ("sarto.errors", "sarto.configuration", "sarto.system"),
    "sarto.system": ("sarto.errors", "sarto.system"),
    "sarto.conversations": (
        "sarto.errors",
        "sarto.plurals",
        "sarto.conversations",
        "sarto.schema.generation",
        "sarto.schema.wire",
    ),
    "sarto.rewards": (
        "sarto.errors",
        "sarto.system",
        "sarto.rewards",
        "sarto.schema.evaluation",
        "sarto.schema.generation",
        "sarto.schema.rewards",
        "sarto.schema.wire",
    ),
    "sarto.contract": ("sarto.errors", "sarto.system", "sarto.contract"),
    "sarto.schema": ("sarto.schema", "sarto.errors", "sarto.names"),
    "sarto.catalog": ("sarto.errors", "sarto.contract", "sarto.system"),
    "sarto.storage": (*WORDS, "sarto.storage"),
    "sarto.samples": (*WORDS, "sarto.storage"),
    "sarto.control": (*WORDS, "sarto.configuration", "sarto.storage", "sarto.control"),
    "sarto.engine": (*WORDS, "sarto.engine"),
    "sarto.serving": (*WORDS, "sarto.configuration", "sarto.storage", "sarto.serving"),
    "sarto.api": (*WORDS, "sarto.storage", "sarto.control", "sarto.serving", "sarto.api"),
    "sarto.assembly": ("sarto",),
    "sarto.cli": ("sarto",),
}
ALSO: dict[str, tuple[str, ...]] = {
    "sarto.engine.programs.tune": ("sarto.settings",),
    "sarto.serving.worker.program": ("sarto.engine",),
    "sarto.serving.preparation.program": ("sarto.engine",),
    "sarto.serving.vllm.stream": ("sarto.engine.serving.reply_parser",),
}
ABOVE_IN_ENGINE = ("tuning", "serving", "evaluation")
BELOW_IN_ENGINE = ("rendering", "dataset", "dataset_report", "ops", "models", "weights")


def under(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def layer(name: str) -> str:
    return ".".join(name.split(".")[:2])


def ours(name: str) -> list[tuple[str, int]]:
    return [(target, line) for target, line in imports(name) if under(target, ("sarto",)) and target != "sarto"]


@pytest.mark.parametrize("name", [name for name in modules() if name != "sarto"])
def test_imports_run_downhill(name: str) -> None:
    allowed = MAY_IMPORT.get(layer(name))
    assert allowed is not None, f"{name} belongs to no layer; say in MAY_IMPORT where it stands"
    allowed += ALSO.get(name, ())
    for target, line in ours(name):
        assert under(target, allowed), f"{name}:{line} imports {target}"


def test_the_engine_does_not_know_the_wire_of_control() -> None:
    forbidden = tuple(f"sarto.schema.{name}" for name in WIRE_OF_CONTROL)
    for name in modules():
        if under(name, ("sarto.engine",)):
            for target, line in ours(name):
                assert not under(target, forbidden), f"{name}:{line} imports {target}"


def test_the_parts_of_the_engine_do_not_tangle() -> None:
    for name in modules():
        if not under(name, ("sarto.engine",)) or name.count(".") < 2:
            continue
        part = name.split(".")[2]
        for target, line in ours(name):
            other = target.split(".")[2] if under(target, ("sarto.engine",)) and target.count(".") > 1 else part
            climbs = part in BELOW_IN_ENGINE and other in ABOVE_IN_ENGINE
            crosses = part in ABOVE_IN_ENGINE and other in ABOVE_IN_ENGINE and other != part
            assert not climbs and not crosses, f"{name}:{line} imports {target}"


def test_control_and_the_api_leave_torch_unloaded() -> None:
    names = [name for name in modules() if under(name, ("sarto.control", "sarto.api", "sarto.schema"))]
    heavy = ("torch", "transformers", "sarto.engine")
    program = f"import importlib, sys\nfor name in {names!r}: importlib.import_module(name)\n"
    program += f"sys.exit(', '.join(name for name in {heavy!r} if name in sys.modules) or None)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
