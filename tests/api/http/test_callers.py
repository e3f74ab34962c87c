"""Under which names the service is called, and whom the metadata server answers."""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest

from sarto.api.http.callers import AllowedHosts, name_caller
from sarto.errors import InvalidArgument, PermissionDenied
from sarto.settings import load
from tests.api.doors import house

SPEAKER = "app-account@demo.iam.gserviceaccount.com"


def scope(host: str, **more: Any) -> dict[str, Any]:
    return {"headers": [(b"host", host.encode())], "client": ("192.0.2.7", 1), **more}


@pytest.mark.parametrize("listening", ["127.0.0.1", "localhost", "::1"])
def test_on_this_machine_alone_it_answers_to_names_that_no_web_page_has(listening: str) -> None:
    hosts = AllowedHosts(listening, ["tune.example.com"])
    for host in ("127.0.0.1:8080", "localhost:1", "LOCALHOST", "[::1]:8080", "127.0.0.9", "tune.example.com:443",
                 "Tune.Example.Com.", "metadata.google.internal"):  # fmt: skip
        hosts.check(scope(host))
    for host in (
        "attacker.example:8080",
        "localhost.attacker.example",
        "127.0.0.1.nip.io",
        "10.0.0.1",
        "[::1",
        "@x",
        "",
    ):
        with pytest.raises(PermissionDenied, match="public_names"):
            hosts.check(scope(host))
    twice = scope("127.0.0.1")
    twice["headers"].append((b"host", b"attacker.example"))
    with pytest.raises(PermissionDenied):
        hosts.check(twice)


def test_elsewhere_names_are_asked_for_where_they_are_configured() -> None:
    AllowedHosts("0.0.0.0").check(scope("anything.example"))
    named = AllowedHosts("0.0.0.0", ["tune.example.com"])
    named.check(scope("tune.example.com"))
    with pytest.raises(PermissionDenied):
        named.check(scope("attacker.example"))


def test_every_route_is_behind_that(tmp_path: Path) -> None:
    async def told() -> None:
        async with house(tmp_path) as place:
            place.account("owner-account", "roles/owner")
            headers = {"authorization": f"Bearer {place.tokens['owner-account']}", "host": "attacker.example:8080"}
            for path in ("/healthz", "/v1/projects/demo", "/storage/v1/b?project=demo", "/docs", "/nothing"):
                answer = await place.client.get(path, headers=headers)
                assert answer.status_code == 403 and "public_names" in answer.text, path

    asyncio.run(told())


def test_only_the_bridge_of_this_process_names_another_caller() -> None:
    for header, expected in (("s3cret 192.0.2.9", "192.0.2.9"), ("wrong 192.0.2.9", "192.0.2.7"), ("", "192.0.2.7")):
        call = scope("127.0.0.1")
        call["headers"].append((b"x-sarto-grpc-caller", header.encode()))
        name_caller(call, "s3cret")
        assert call["client"][0] == expected
    off = scope("127.0.0.1")
    off["headers"].append((b"x-sarto-grpc-caller", b" 192.0.2.9"))
    name_caller(off, "")
    assert off["client"][0] == "192.0.2.7"


def test_the_environment_writes_names_with_commas(tmp_path: Path) -> None:
    environ = {"SARTO_PUBLIC_NAMES": "a.example, b.example", "SARTO_TRUSTED_PROXIES": "10.0.0.0/8"}
    settings = load(tmp_path, environ)
    assert settings.public_names == ["a.example", "b.example"] and settings.trusted_proxies == ["10.0.0.0/8"]
    for wrong in ("*", "proxy.example", "10.0.0.1/8"):
        with pytest.raises(InvalidArgument, match="trusted_proxies"):
            load(tmp_path, {"SARTO_TRUSTED_PROXIES": wrong})


@pytest.mark.parametrize("account", ["true", "sarto-admin@sys.iam.gserviceaccount.com"])
def test_the_metadata_server_speaks_for_no_administrator(tmp_path: Path, account: str) -> None:
    async def told() -> None:
        async with house(tmp_path, metadata_server=account):
            """Not reached."""

    with pytest.raises((InvalidArgument, PermissionDenied), match="metadata_server"):
        asyncio.run(told())


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("metadata") / "home"


@pytest.fixture(scope="module")
def served(home: Path) -> Iterator[str]:
    """A real server whose metadata server speaks for an account that there is."""

    async def prepare() -> None:
        async with house(home) as place:
            place.account("app-account", "roles/aiplatform.viewer")

    asyncio.run(prepare())
    program = "from sarto.cli import main; main()"
    command = [sys.executable, "-c", program, "serve", "--port", "0", "--home", str(home)]
    environ = {**os.environ, "SARTO_METADATA_SERVER": SPEAKER, "SARTO_TRUSTED_PROXIES": "127.0.0.1"}
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if line.startswith("Ctrl-C"):
                break
        yield (home / "address").read_text().strip()
        child.terminate()


def administrator(served: str, home: Path) -> dict[str, str]:
    """Headers of a call by the key in the home."""
    key, now = json.loads((home / "credentials" / "admin.json").read_bytes()), int(time.time())
    claims = {"iss": key["client_email"], "iat": now, "exp": now + 600, "scope": "all"}
    signed = jwt.encode(claims, key["private_key"], "RS256", {"kid": key["private_key_id"]})
    return {"Authorization": f"Bearer {signed}"}


def test_the_audit_log_has_the_caller_that_a_trusted_proxy_names(served: str, home: Path) -> None:
    headers = administrator(served, home)
    accounts = f"{served}/v1/projects/demo/serviceAccounts"
    proxied = headers | {"X-Forwarded-For": "198.51.100.1, 192.0.2.9"}  # the first is what the caller itself sent
    assert httpx.post(accounts, json={"accountId": "noted-account"}, headers=proxied).status_code == 200
    asked = {"resourceNames": ["projects/demo"], "filter": "", "orderBy": "timestamp desc"}
    entries = httpx.post(f"{served}/v2/entries:list", json=asked, headers=headers).json()["entries"]
    callers = {one["protoPayload"]["requestMetadata"]["callerIp"] for one in entries}
    assert "192.0.2.9" in callers and "198.51.100.1" not in callers


def test_a_new_key_of_the_administrator_is_made_on_request(served: str, home: Path) -> None:
    file = home / "credentials" / "admin.json"
    before = json.loads(file.read_bytes())
    file.unlink()
    program = "from sarto.cli import main; main()"
    command = [sys.executable, "-c", program, "auth", "new-admin-key", "--home", str(home)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    after = json.loads(file.read_bytes())
    assert after["private_key_id"] != before["private_key_id"] and after["token_uri"] == f"{served}/token"
    keys = f"{served}/v1/projects/sys/serviceAccounts/{after['client_email']}/keys"
    headers = administrator(served, home)
    assert len(httpx.get(keys, headers=headers).json()["keys"]) == 2
    asked = {"resourceNames": ["projects/sys"], "filter": "", "orderBy": "timestamp desc"}
    entries = httpx.post(f"{served}/v2/entries:list", json=asked, headers=headers).json()["entries"]
    [entry] = [one for one in entries if one["labels"]["request"] == "sarto auth new-admin-key"]
    act = entry["protoPayload"]
    assert act["methodName"] == "google.iam.admin.v1.CreateServiceAccountKey" and act["status"] == {}
    assert act["resourceName"].endswith(f"/serviceAccounts/{after['client_email']}/keys/{after['private_key_id']}")
    assert act["authenticationInfo"]["principalSubject"] == "service:sarto"
    user = pwd.getpwuid(os.getuid()).pw_name
    assert act["authenticationInfo"]["serviceAccountDelegationInfo"] == [{"principalSubject": f"localUser:{user}"}]
    verdict = subprocess.run(
        [sys.executable, "-c", program, "audit", "verify", "--home", str(home)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert verdict.returncode == 0, verdict.stdout + verdict.stderr


TOKEN = "/computeMetadata/v1/instance/service-accounts/default/token"
FLAVOR = {"Metadata-Flavor": "Google"}


def test_it_gives_tokens_of_its_account_and_nothing_more(served: str) -> None:
    answer = httpx.get(served + TOKEN, headers=FLAVOR)
    assert answer.status_code == 200
    bearer = {"Authorization": f"Bearer {answer.json()['access_token']}"}
    jobs = f"{served}/v1/projects/demo/locations/us-central1/tuningJobs"
    assert httpx.get(jobs, headers=bearer).status_code == 200
    assert httpx.get(f"{served}/metrics", headers=bearer).status_code == 403
    for host in ("localhost", "[::1]", "metadata.google.internal"):
        assert httpx.get(served + TOKEN, headers=FLAVOR | {"Host": host}).status_code == 200, host


@pytest.mark.parametrize(
    "header",
    [
        {"Host": "attacker.example:18095"}, {"Origin": "http://attacker.example"}, {"Origin": "null"},
        {"Sec-Fetch-Site": "same-origin"}, {"Referer": "http://127.0.0.1/"}, {"X-Forwarded-For": "10.0.0.1"},
        {"X-Forwarded-Proto": "https"}, {"X-Real-IP": "10.0.0.1"}, {"Forwarded": "for=10.0.0.1"}, {"Via": "1.1 proxy"},
        {"CF-Connecting-IP": "10.0.0.1"}, {"Metadata-Flavor": "Other"},
    ],
)  # fmt: skip
def test_it_answers_no_browser_and_no_proxy(served: str, header: dict[str, str]) -> None:
    assert httpx.get(served + TOKEN, headers=FLAVOR | header).status_code == 403


@pytest.mark.skipif(os.getuid() != 0, reason="only root can call as another user")
def test_it_answers_no_other_user_of_this_machine(served: str) -> None:
    program = (
        "import os, sys, encodings.idna, http.client, urllib.parse\n"  # all that it reads while it may
        "os.setgid(65534); os.setuid(65534)\n"
        "place = http.client.HTTPConnection(urllib.parse.urlsplit(sys.argv[1]).netloc)\n"
        "place.request('GET', sys.argv[2], headers={'Metadata-Flavor': 'Google'})\n"
        "print(place.getresponse().status)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, served, TOKEN], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "403", done.stderr
