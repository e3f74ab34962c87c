"""gcloud storage against the real service, signed in with the home's key file."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from .storage_server import Server

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("gcloud") is None, reason="the gcloud command is not installed"),
]


class Gcloud:
    def __init__(self, server: Server, folder: Path) -> None:
        self.folder = folder
        self._environ = {
            **os.environ,
            "CLOUDSDK_CONFIG": str(folder / "config"),
            "CLOUDSDK_CORE_DISABLE_PROMPTS": "1",
            "CLOUDSDK_CORE_PROJECT": "demo",
            "CLOUDSDK_CORE_DISABLE_USAGE_REPORTING": "1",
            "CLOUDSDK_COMPONENT_MANAGER_DISABLE_UPDATE_CHECK": "1",
            "CLOUDSDK_STORAGE_PROCESS_COUNT": "1",
            "CLOUDSDK_API_ENDPOINT_OVERRIDES_STORAGE": f"{server.address}/storage/v1/",
        }
        self.run("auth", "activate-service-account", f"--key-file={server.key_file}")

    def run(self, *words: str) -> str:
        done = subprocess.run(
            ["gcloud", *words], env=self._environ, cwd=self.folder, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def fail(self, *words: str) -> str:
        with pytest.raises(AssertionError) as error:
            self.run(*words)
        return str(error.value)


@pytest.fixture(scope="module")
def gcloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gcloud]:
    server = Server(tmp_path_factory.mktemp("home"))
    server.start()
    yield Gcloud(server, tmp_path_factory.mktemp("gcloud"))
    server.stop()


def test_gcloud_storage_works_from_bucket_to_bucket(gcloud: Gcloud) -> None:
    large = os.urandom(9_000_000)  # above gcloud's threshold for resumable uploads
    (gcloud.folder / "large").write_bytes(large)
    (gcloud.folder / "a b.txt").write_text("hello\n")
    gcloud.run("storage", "buckets", "create", "gs://by-gcloud", "--location=us-central1")
    gcloud.run("storage", "cp", "large", "a b.txt", "gs://by-gcloud/dir/")
    assert gcloud.run("storage", "cat", "gs://by-gcloud/dir/a b.txt") == "hello\n"
    listed = gcloud.run("storage", "ls", "-l", "gs://by-gcloud/dir/")
    assert "9000000" in listed and "gs://by-gcloud/dir/a b.txt" in listed
    gcloud.run("storage", "cp", "gs://by-gcloud/dir/large", "back")
    assert (gcloud.folder / "back").read_bytes() == large
    gcloud.run("storage", "mv", "gs://by-gcloud/dir/large", "gs://by-gcloud/moved")
    assert gcloud.run("storage", "ls", "gs://by-gcloud").split() == ["gs://by-gcloud/moved", "gs://by-gcloud/dir/"]
    assert "pre-conditions" in gcloud.fail(
        "storage", "cp", "--if-generation-match=0", "a b.txt", "gs://by-gcloud/moved"
    )
    gcloud.run("storage", "objects", "update", "gs://by-gcloud/moved", "--custom-metadata=task=demo")
    described = gcloud.run("storage", "objects", "describe", "gs://by-gcloud/moved", "--format=json")
    assert '"task": "demo"' in described
    assert "matched no objects" in gcloud.fail("storage", "rm", "gs://by-gcloud/nothing")
    gcloud.run("storage", "rm", "-r", "gs://by-gcloud")
    assert "matched no objects" in gcloud.fail("storage", "ls")
