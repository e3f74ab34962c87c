"""`sarto serve` as a process: what scripts wait for, how it refuses, and that Ctrl-C leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

RING = "projects/demo/locations/us-central1/keyRings/r"
MAIN = "from sarto.cli import main; main()"


def serve(home: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", MAIN, "serve", "--home", str(home), *options]
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def address(child: subprocess.Popen[str], home: Path) -> str:
    deadline = time.monotonic() + 30
    while not (home / "address").exists():
        if child.poll() is not None or time.monotonic() > deadline:
            child.kill()
            pytest.fail(f"the server did not start: {child.communicate()}")
        time.sleep(0.02)  # the file is what scripts wait for
    return (home / "address").read_text().strip()


def refused(home: Path, *options: str) -> str:
    child = serve(home, *options)
    try:
        _, words = child.communicate(timeout=30)
    finally:
        child.kill()
    assert child.returncode not in (0, None)
    assert "Traceback" not in words
    return " ".join(words.split())


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("serve") / "home"


@pytest.fixture(scope="module")
def child(home: Path) -> Iterator[subprocess.Popen[str]]:
    child = serve(home, "--port", "0")
    address(child, home)
    yield child
    child.kill()
    child.communicate()


def test_it_says_where_it_is_and_how_to_begin(child: subprocess.Popen[str], home: Path) -> None:
    place = address(child, home)
    assert httpx.get(f"{place}/readyz").status_code == 200
    assert (home / "credentials" / "admin.json").stat().st_mode & 0o777 == 0o600


def test_nothing_at_home_is_open_to_others(child: subprocess.Popen[str], home: Path) -> None:
    address(child, home)
    assert home.stat().st_mode & 0o777 == 0o700
    assert (home / "sarto.db").exists()
    wide = [path for path in home.rglob("*") if not path.is_symlink() and path.stat().st_mode & 0o077]
    assert not wide


def test_a_home_that_was_made_wide_is_closed(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "runs").mkdir(mode=0o755, parents=True)
    home.chmod(0o755)
    child = serve(home, "--port", "0")
    address(child, home)
    child.kill()
    child.communicate()
    assert {path.stat().st_mode & 0o777 for path in (home, home / "runs")} == {0o700}


def test_a_port_in_use_and_a_home_in_use_are_clear_errors(
    child: subprocess.Popen[str], home: Path, tmp_path: Path
) -> None:
    port = address(child, home).rpartition(":")[2]
    words = refused(tmp_path / "other", "--port", port)
    assert f"Port {port} of 127.0.0.1 is in use" in words and "--port" in words
    assert str(child.pid) in refused(home, "--port", "0")


def test_a_home_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refused(tmp_path / "file" / "home", "--port", "0")


def test_a_home_with_a_bad_setting_names_it(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("colour = 'red'\n")
    assert "colour" in refused(tmp_path, "--port", "0")


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_everything_at_once(tmp_path: Path, how: signal.Signals) -> None:
    child = serve(tmp_path, "--port", "0")
    place = address(child, tmp_path)
    with socket.create_connection(("127.0.0.1", int(place.rpartition(":")[2]))):  # an open connection holds nothing up
        began = time.monotonic()
        child.send_signal(how)
        try:
            words, faults = child.communicate(timeout=10)
        finally:
            child.kill()
    assert time.monotonic() - began < 4
    assert child.returncode == 0 and words.rstrip().endswith(str(tmp_path)), faults
    assert not (tmp_path / "address").exists() and "Traceback" not in faults


def test_an_address_that_others_reach_is_refused_without_tls(tmp_path: Path) -> None:
    words = refused(tmp_path, "--port", "0", "--host", "0.0.0.0")
    assert "plain_http_to_other_machines" in words and 'tls = "local"' in words


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("config.toml", "port = 8080\ntls = local\n", ("config.toml", "line 2", 'name = "value"')),
        ("catalog.toml", "[[model]\n", ("catalog.toml", "line 1")),
        ("catalog.toml", '[[weights]]\nid = "x"\n', ("catalog.toml", "[[weights]] number 1", "title")),
        (
            "catalog.toml",
            '[[model]]\nnames = ["m"]\nweights = "nope"\nadapter_sizes = [1]\ndefault_adapter_size = 1\n',
            ("catalog.toml", '"nope"', "smollm2-135m-instruct"),
        ),
    ],
)
def test_a_broken_file_of_the_home_ends_in_a_sentence(
    tmp_path: Path, file: str, text: str, words: tuple[str, ...]
) -> None:
    (tmp_path / file).write_text(text)
    said = refused(tmp_path, "--port", "0")
    assert all(word in said for word in words), said


def test_a_public_address_is_in_keys_certificate_and_banner_and_is_answered(tmp_path: Path) -> None:
    config = 'tls = "local"\ntls_names = ["10.1.2.3"]\npublic_url = "https://tuner.example.com:8443"\n'
    (tmp_path / "config.toml").write_text(config)
    child = serve(tmp_path, "--port", "0")
    try:
        url = address(child, tmp_path)
        key = json.loads((tmp_path / "credentials" / "admin.json").read_text())
        assert key["token_uri"] == "https://tuner.example.com:8443/token"
        trust = ssl.create_default_context(cafile=str(tmp_path / "tls" / "ca.pem"))
        port = int(url.rpartition(":")[2])
        with (
            socket.create_connection(("127.0.0.1", port)) as plain,
            trust.wrap_socket(plain, server_hostname="tuner.example.com") as wire,
        ):
            names = {value for _, value in wire.getpeercert()["subjectAltName"]}  # type: ignore[index]
            wire.sendall(b"GET /healthz HTTP/1.1\r\nHost: tuner.example.com:8443\r\nConnection: close\r\n\r\n")
            assert b" 200 " in wire.recv(64)
        assert {"tuner.example.com", "10.1.2.3", "localhost"} <= names
        assert child.stdout is not None and "https://tuner.example.com:8443" in child.stdout.readline()
    finally:
        child.kill()
        child.communicate()


def test_a_certificate_without_its_key_and_one_that_is_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(f"tls_certificate = '{tmp_path}/none.pem'\n")
    assert "belong together" in refused(tmp_path, "--port", "0")
    (tmp_path / "config.toml").write_text(f"tls_certificate = '{tmp_path}/none.pem'\ntls_key = '{tmp_path}/none.pem'\n")
    assert "cannot be used" in refused(tmp_path, "--port", "0")


def test_https_with_a_generated_certificate_needs_its_authority_and_works_for_the_program(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("tls = 'local'\n")
    child = serve(tmp_path, "--port", "0")
    try:
        place = address(child, tmp_path)
        assert place.startswith("https://")
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(f"{place}/readyz")
        trusted = ssl.create_default_context(cafile=str(tmp_path / "tls" / "ca.pem"))
        assert httpx.get(f"{place}/readyz", verify=trusted).status_code == 200
        environ = {
            **os.environ,
            "SARTO_URL": place,
            "SSL_CERT_FILE": str(tmp_path / "tls" / "ca.pem"),
            "GOOGLE_APPLICATION_CREDENTIALS": str(tmp_path / "credentials" / "admin.json"),
        }
        for command in (
            ["projects", "list"],
            ["kms", "keys", "create", f"{RING}/cryptoKeys/k"],
            ["kms", "keys", "list"],
        ):
            done = subprocess.run([sys.executable, "-c", MAIN, *command], env=environ, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
        assert "ENABLED" in done.stdout
    finally:
        child.kill()
        child.communicate()


def test_a_data_folder_without_a_database_to_share_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(f"data_folder = '{tmp_path}/shared'\n")
    assert "set database_url too" in refused(tmp_path, "--port", "0")


def test_more_threads_for_one_run_than_for_all_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("threads = 4\nrun_threads = 2\n")
    assert "threads = 4 for one run is more than run_threads = 2 for all" in refused(tmp_path, "--port", "0")


def test_a_backup_of_what_is_not_in_the_home_is_refused_with_the_way_to_take_one(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("database_url = 'postgresql+psycopg://nobody@127.0.0.1:9/sarto'\n")
    command = [sys.executable, "-c", MAIN, "backup", str(tmp_path / "saved"), "--home", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and "pg_dump" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "saved").exists()
