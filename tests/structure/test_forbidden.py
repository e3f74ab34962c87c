"""What must not stand in the code or the repository at all."""

from __future__ import annotations

import ast
import re

import pytest

from tests.structure.sources import ROOT, imports, modules, tracked_files, tree

UNSAFE_MODULES = ("pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib")
UNSAFE_CALLS = ("eval", "exec", "compile", "__import__")
UNSAFE_FUNCTIONS = ("yaml.load", "yaml.unsafe_load", "os.system", "os.popen", "pandas.read_pickle")
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
                assert node.func.id not in UNSAFE_CALLS, f"{name}:{node.lineno} calls {node.func.id}"
            words = {keyword.arg: keyword.value for keyword in node.keywords}
            assert "trust_remote_code" not in words, f"{name}:{node.lineno} trusts remote code"
            if isinstance(node.func, ast.Attribute) and ast.unparse(node.func) == "torch.load":
                pytest.fail(f"{name}:{node.lineno} loads a pickle; safetensors only")
            called = ast.unparse(node.func)
            assert called not in UNSAFE_FUNCTIONS, f"{name}:{node.lineno} calls {called}"
            assert "allow_pickle" not in words, f"{name}:{node.lineno} allows pickles"
            shell = words.get("shell")
            assert shell is None, f"{name}:{node.lineno} starts a shell"


def test_environment_is_read_in_settings_alone() -> None:
    """The assembly may hand it on to children."""
    readers = {
        name
        for name, path in modules().items()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("os.environ", "os.getenv")
    }
    assert readers <= {"sarto.settings", "sarto.app", "sarto.failpoints"}


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
