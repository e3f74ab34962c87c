"""The shape of the package: folders that can be taken in at a glance, modules that know few others, imports that run in
no circle, and nothing that nobody uses. `python -m tests.structure.shape` prints the counts."""

from __future__ import annotations

import ast
import re
import tomllib
from collections import Counter
from functools import cache
from importlib.metadata import packages_distributions

import pytest

from tests.structure.shape import circle, packages
from tests.structure.sources import PACKAGE, ROOT, imports, modules, tracked_files, tree

MOST_ENTRIES, MOST_IMPORTS = 20, 15
FREE = ("migrations", "versions", "samples", "__pycache__")
"""Folders of files that no reader chooses among."""
MORE_IMPORTS = {
    "sarto.api.iam.service_accounts": 16,
    "sarto.assembly.app": 33,
    "sarto.assembly.background": 20,
    "sarto.control.batches.batch_predictions": 17,
    "sarto.control.batches.batch_runner": 18,
    "sarto.control.dataset_queries": 21,
    "sarto.control.evaluation.dataset_evaluations": 17,
    "sarto.control.jobs.tuning_jobs": 19,
    "sarto.control.jobs.validation": 19,
    "sarto.control.runs.attempt": 23,
    "sarto.control.runs.evaluations": 16,
    "sarto.control.runs.publishing": 16,
    "sarto.control.runs.run_spec": 18,
    "sarto.engine.programs.tune": 26,
    "sarto.engine.tuning.session": 23,
}
"""Modules that still know more others than they should, and how many. A number here may only fall."""
UNUSED_BY_CODE = {
    "httptools": "uvicorn's parser, where there is one",
    "uvloop": "uvicorn's event loop, where there is one",
}
"""Dependencies that another one imports, and why they are named."""


@pytest.mark.parametrize("package", packages())
def test_no_entries_of_a_package_import_one_another_in_a_circle(package: str) -> None:
    assert circle(package) == []


def test_a_folder_has_at_most_20_entries() -> None:
    crowded = {}
    for folder in [PACKAGE, *(path for path in PACKAGE.rglob("*") if path.is_dir())]:
        if not set(folder.relative_to(PACKAGE).parts) & set(FREE):
            count = sum(path.suffix not in (".so", ".pyd") and path.name not in FREE for path in folder.iterdir())
            if count > MOST_ENTRIES:
                crowded[folder.relative_to(PACKAGE).as_posix()] = count
    assert crowded == {}


def test_a_module_imports_at_most_15_of_ours() -> None:
    counts = {name: len({target for target, _ in imports(name) if target.startswith("sarto.")}) for name in modules()}
    del counts["sarto.api.routes"]  # the table of all modules of handlers
    wide = {name: count for name, count in counts.items() if count > MOST_IMPORTS}
    assert {name: count for name, count in wide.items() if count > MORE_IMPORTS.get(name, 0)} == {}
    assert {name: count for name, count in MORE_IMPORTS.items() if counts[name] < count} == {}, "lower the number"


@cache
def declared() -> set[str]:
    """Every requirement of the package and its extras, by its normal name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    return {normal(re.split(r"[\[<>=;! ]", line)[0]) for lines in lists for line in lines}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def imported() -> set[str]:
    """The top names of what the package imports, other than the standard library and itself."""
    import sys

    names = {target.split(".")[0] for name in modules() for target, _ in imports(name)}
    return names - set(sys.stdlib_module_names) - {"sarto"}


def test_every_dependency_is_imported() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {normal(re.split(r"[\[<>=;! ]", line)[0]) for line in project["dependencies"]}
    providers = packages_distributions()
    used = {normal(distribution) for name in imported() for distribution in providers.get(name, ())}
    assert needed - used - set(UNUSED_BY_CODE) == set()


def test_every_import_is_of_a_dependency() -> None:
    providers = packages_distributions()
    missing = {
        name
        for name in imported()
        if not {normal(distribution) for distribution in providers.get(name, (name,))}
        & declared()  # not installed: by name
    }
    assert missing == set()


def test_every_definition_is_used() -> None:
    words: Counter[str] = Counter()
    for path in modules().values():
        words.update(re.findall(r"\w+", path.read_text(encoding="utf-8")))
    unused = [
        f"{name}.{defined}"
        for name, path in modules().items()
        if ".migrations." not in name
        for node in tree(path).body
        for defined in definitions(node)
        if words[defined] == 1
    ]
    assert unused == []


def definitions(node: ast.stmt) -> list[str]:
    """The names that a statement of a module defines; a decorator may register what it decorates."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return [] if node.decorator_list else [node.name]
    if isinstance(node, ast.Assign):
        names = [target.id for target in node.targets if isinstance(target, ast.Name)]
        return [name for name in names if not name.startswith("__")]
    return [node.target.id] if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) else []


def test_every_name_that_a_program_imports_is_there() -> None:
    """Benchmarks, examples, tests and pages hold programs as text, which no type checker reads."""
    missing = []
    for path in tracked_files():
        if path.suffix not in (".py", ".md") or PACKAGE in path.parents:
            continue
        for module, names in PROGRAM_IMPORT.findall(path.read_text(encoding="utf-8")):
            for name in names.split(","):
                if not _is_there(module, name.partition(" as ")[0].strip(" ()\\\n")):
                    missing.append(f"{path.relative_to(ROOT)}: from {module} import {name.strip()}")
    assert missing == []


PROGRAM_IMPORT = re.compile(r"^\s*from (sarto(?:\.\w+)*) import (\([^)]*\)|[\w, ]+)", re.MULTILINE)


def _is_there(module: str, name: str) -> bool:
    if f"{module}.{name}" in modules() or not name:
        return True
    return module in modules() and re.search(rf"\b{name}\b", modules()[module].read_text(encoding="utf-8")) is not None


@pytest.mark.parametrize("name", modules())
def test_a_module_defines_each_name_once(name: str) -> None:
    """The second definition would silently change what the first one's users get; linters report only functions."""
    defined: Counter[str] = Counter()
    for node in tree(modules()[name]).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", node)]
        defined.update(target.id for target in targets if isinstance(target, ast.Name))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            defined[node.name] += 1
    assert [word for word, count in defined.items() if count > 1] == []
