"""What must not stand in the code or the repository at all."""

from __future__ import annotations

import ast
import re

import pytest

from sarto.storage.database.database import Lock
from tests.structure.sources import ROOT, imports, modules, tracked_files, tree

UNSAFE_MODULES = ("pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib")
UNSAFE_CALLS = ("eval", "exec", "compile", "__import__")
UNSAFE_FUNCTIONS = ("yaml.load", "yaml.unsafe_load", "os.system", "os.popen", "pandas.read_pickle")
RUNS_USER_CODE = {"sarto.rewards.code_worker": ("exec", "compile")}
"""In a process that can only compute (`sarto.system.sandbox.keep_computing`)."""
PATTERN_MODULES = ("re", "regex", "fnmatch")
PATTERN_PARTS = {
    "sarto.engine.rendering.tokenizer": 2,  # alternatives and one character class, of escaped texts
    "sarto.engine.rendering.template_plans": 1,  # of constants of the module
}
"""Modules that put a pattern together, and how often. No text of a caller may become one: matching can take for ever,
with the interpreter's lock held (`sarto.system.globs` matches stars)."""
THIS_FILE = "tests/structure/test_forbidden.py"
FOREIGN = re.compile(
    r"(?<![\w.~}])/(?:work|home|root|Users|mnt|opt)/\w"  # a place on somebody's machine
    r"|pypi\.org|pythonhosted|pypi/simple|registry\.npmjs|download\.pytorch\.org|proxy\.golang"  # a registry's host
)


@pytest.mark.parametrize("name", modules())
def test_nothing_runs_code_from_data(name: str) -> None:
    for target, line in imports(name):
        assert target.split(".")[0] not in UNSAFE_MODULES, f"{name}:{line} imports {target}"
    for node in ast.walk(tree(modules()[name])):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name):
                assert node.func.id not in UNSAFE_CALLS or node.func.id in RUNS_USER_CODE.get(name, ()), (
                    f"{name}:{node.lineno} calls {node.func.id}"
                )
            words = {keyword.arg: keyword.value for keyword in node.keywords}
            assert "trust_remote_code" not in words, f"{name}:{node.lineno} trusts remote code"
            if isinstance(node.func, ast.Attribute) and ast.unparse(node.func) == "torch.load":
                pytest.fail(f"{name}:{node.lineno} loads a pickle; safetensors only")
            called = ast.unparse(node.func)
            assert called not in UNSAFE_FUNCTIONS, f"{name}:{node.lineno} calls {called}"
            assert "allow_pickle" not in words, f"{name}:{node.lineno} allows pickles"
            shell = words.get("shell")
            assert shell is None, f"{name}:{node.lineno} starts a shell"


def test_no_text_of_a_caller_becomes_a_pattern() -> None:
    found: dict[str, int] = {}
    for name, path in modules().items():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ImportFrom):
                assert node.module not in PATTERN_MODULES, (
                    f"{name}:{node.lineno}: import {node.module}, so that this test sees it"
                )
            if isinstance(node, ast.Import):
                named = [alias for alias in node.names if alias.name in PATTERN_MODULES]
                assert all(alias.name == "re" and alias.asname is None for alias in named), f"{name}:{node.lineno}"
            if isinstance(node, ast.Call) and _takes_a_pattern(node.func) and not _is_constant(node):
                found[name] = found.get(name, 0) + 1
    assert found == PATTERN_PARTS


def _takes_a_pattern(function: ast.expr) -> bool:
    """Functions of `re`, matching of paths, and regular expressions of a database."""
    called = ast.unparse(function)
    is_of_re = called.startswith("re.") and called != "re.escape"
    return is_of_re or called.endswith((".regexp_match", ".regexp_replace", ".rglob", ".full_match"))


def _is_constant(call: ast.Call) -> bool:
    return bool(call.args) and isinstance(call.args[0], ast.Constant)


def test_threads_of_tests_hold_no_session_up() -> None:
    """A test that fails leaves its threads as they are: Python waits at its end for those that are no daemons."""
    for path in (ROOT / "tests").rglob("*.py"):
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "Thread":
                words = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert words.get("daemon") == "True", f"{path}:{node.lineno}: a thread of a test is a daemon"


def test_nothing_sleeps_in_a_thread_that_handlers_share() -> None:
    """A request that waits does so in the event loop (`asyncio.sleep`), and a loop of ours waits for an event."""
    for name, path in modules().items():
        if name.startswith(("sarto.api", "sarto.control", "sarto.schema", "sarto.storage")):
            for node in ast.walk(tree(path)):
                is_call = isinstance(node, ast.Call) and ast.unparse(node.func) in ("time.sleep", "sleep")
                assert not is_call, f"{name}:{getattr(node, 'lineno', 0)} sleeps"


def test_environment_is_read_in_settings_alone() -> None:
    """The assembly may hand it on to children; the sandbox says where a run keeps temporary files."""
    readers = {
        name
        for name, path in modules().items()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("os.environ", "os.getenv")
    }
    readers = {name for name in readers if not name.startswith("sarto.assembly.")}
    assert readers <= {"sarto.settings", "sarto.system.failpoints", "sarto.system.sandbox"}


def test_no_place_of_one_machine_and_no_registry_host_in_the_repository() -> None:
    for path in tracked_files():
        name = path.relative_to(ROOT).as_posix()
        if name == THIS_FILE:
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a picture or a model, not text
        found = FOREIGN.search(text)
        assert found is None, f"{name}:{text[: found.start()].count(chr(10)) + 1} holds {found.group()}"


def test_no_file_is_large_by_accident() -> None:
    large = [path.relative_to(ROOT).as_posix() for path in tracked_files() if path.stat().st_size > 2_000_000]
    assert large == []


def test_advisory_locks_differ_and_are_taken_in_one_place() -> None:
    """Two that share a number stop each other's work; a number that stands elsewhere is one the enum does not see."""
    numbers = [lock.value for lock in Lock.__members__.values()]
    assert len(set(numbers)) == len(Lock.__members__)
    for name, path in modules().items():
        if name == "sarto.storage.database.database":
            continue
        text = path.read_text(encoding="utf-8")
        assert "advisory" not in text, f"{name} takes an advisory lock; use Database.lock"
        found = {node.value for node in ast.walk(tree(path)) if isinstance(node, ast.Constant)} & set(numbers)
        assert not found, f"{name} holds the number of an advisory lock: {found}"
