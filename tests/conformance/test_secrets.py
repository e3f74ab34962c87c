"""A service through a whole life with planted secrets: none of them in a log, an argument list, a child's environment,
an event, an audit entry or a job's metadata, and nothing of what jobs learn from in a log."""

from __future__ import annotations

import json
import re
import secrets
import threading
from base64 import b64decode, b64encode
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa

from .conftest import PARENT, ended
from .service import Service, upload, wait_for

PROMPT = "the-patient-is-called-Euphemia-Canary"
SPEC = {"hyperParameters": {"epochCount": 3}}
LIFE = ["sarto serve", "engine.programs.sandbox", "serving.worker.program"]


class Watch:
    """Looks at every process that a service has, as often as it can, and remembers what anyone could have read."""

    def __init__(self, pid: int) -> None:
        self.pid, self.seen, self.limits = pid, set[str](), set[str]()
        self.own = Path("/proc", str(pid), "cmdline").read_text().replace("\0", " ")
        self.environments: set[str] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stop.wait(0.02):
            for pid in self._family():
                try:
                    place = Path("/proc", str(pid))
                    command = place.joinpath("cmdline").read_text(errors="replace").replace("\0", " ")
                    self.seen.add(command)
                    self.limits.add(re.findall("Max core file size +.*", place.joinpath("limits").read_text())[0])
                    if command != self.own:  # the server itself, also as a child that has not become its program yet
                        self.environments.add(place.joinpath("environ").read_text(errors="replace"))
                except (OSError, IndexError):
                    continue  # it ended meanwhile, or keeps its memory to itself

    def _family(self) -> Iterator[int]:
        parents = {}
        for place in Path("/proc").glob("[0-9]*/stat"):
            try:
                text = place.read_text()
            except OSError:
                continue
            parents[int(place.parent.name)] = int(text.rpartition(")")[2].split()[1])
        for pid in parents:
            above = pid
            while above > 1 and above != self.pid:
                above = parents.get(above, 0)
            if above == self.pid:
                yield pid


@pytest.mark.skipif(not Path("/proc/self/limits").exists(), reason="looks at processes through /proc")
def test_no_secret_leaves_the_places_it_belongs_in(tmp_path: Path) -> None:
    service = Service(tmp_path / "home")
    master, vault = b64encode(secrets.token_bytes(32)).decode(), secrets.token_hex(20)
    output = tmp_path / "output"
    service.start(SARTO_MASTER_KEY=master, SARTO_VAULT_TOKEN=vault, SARTO_AUDIT_DATA_ACCESS="true", output=str(output))
    watch = Watch(service.pid)
    try:
        planted = _live(service) | {"master key": master, "vault token": vault}
    finally:
        watch.stop()
        service.stop()
    planted["admin's key"] = service.key["private_key"].splitlines()[5]
    assert all(any(word in line for line in watch.seen) for word in LIFE[1:]), watch.seen
    assert watch.limits and all(line.split()[4:6] == ["0", "0"] for line in watch.limits), watch.limits

    logs = {str(p): p.read_text(errors="replace") for p in service.home.rglob("*") if p.is_file() and _is_log(p)}
    logs["output"] = output.read_text()
    assert len(logs) >= 3 and "run started" in "".join(logs.values())
    written = logs | {"arguments": "\n".join(watch.seen), "environments": "\n".join(watch.environments)}
    written |= _database(service.home / "sarto.db")
    found = [(name, place) for name, secret in planted.items() for place, text in written.items() if secret in text]
    assert found == []
    assert [place for place, text in logs.items() if PROMPT in text] == []
    assert PROMPT not in written["arguments"] and PROMPT not in written["audit_entry"]
    assert not re.search(r"\bSARTO_\w+=", written["environments"])


def _live(service: Service) -> dict[str, str]:
    """Everything a service does with secrets; gives those that came up on the way."""
    token = service.token()
    planted = {"administrator's token": token}
    headers = {"Authorization": f"Bearer {token}"}
    with httpx.Client(base_url=service.address, timeout=60, headers=headers) as http:
        planted["signed assertion"] = _wrong_doors(service, http)
        account = "/v1/projects/demo/serviceAccounts"
        http.post(account, json={"accountId": "robot-account"}).raise_for_status()
        robot = f"{account}/robot-account@demo.iam.gserviceaccount.com"
        key = json.loads(b64decode(http.post(f"{robot}/keys", json={}).json()["privateKeyData"]))
        planted["account's key"] = key["private_key"].splitlines()[5]
        body = {"scope": ["all"]}
        planted["short-lived token"] = http.post(f"{robot}:generateAccessToken", json=body).json()["accessToken"]
        hook = http.post(f"/v1/{PARENT}/webhooks", json={"uri": "https://8.8.8.8/hook"})
        planted["webhook secret"] = hook.json()["secret"]
        ring = f"/v1/{PARENT}/keyRings"
        http.post(ring, params={"keyRingId": "r"}, json={}).raise_for_status()
        http.post(f"{ring}/r/cryptoKeys", params={"cryptoKeyId": "k"}, json={"purpose": "ENCRYPT_DECRYPT"})
        row = {"contents": [{"role": "user", "parts": [{"text": PROMPT}]}, {"role": "model", "parts": [{"text": "x"}]}]}
        data = (json.dumps(row) + "\n").encode()
        uri, broken = (
            upload(http, "data", "a.jsonl", data * 12),
            upload(http, "data", "b.jsonl", data * 12 + b"{}\n" * 9),
        )
        jobs = f"/v1/{PARENT}/tuningJobs"
        body = {"baseModel": "gemini-2.0-flash-001", "supervisedTuningSpec": SPEC | {"trainingDatasetUri": uri}}
        job = ended(http, http.post(jobs, json=body).json()["name"])
        http.post(jobs, json=body | {"supervisedTuningSpec": {"trainingDatasetUri": broken}})
        ask = {"contents": row["contents"][:1], "generationConfig": {"maxOutputTokens": 3}}
        http.post(f"/v1/{job['tunedModel']['endpoint']}:generateContent", json=ask).raise_for_status()
        http.post(f"/v1/{job['tunedModel']['endpoint']}:generateContent", json=ask | {"cachedContent": PROMPT})
        wait_for(lambda: "deliveries" in http.get(f"/v1/{hook.json()['name']}/deliveries").json())
    return planted


def _wrong_doors(service: Service, http: httpx.Client) -> str:
    """Secrets where a client may put them by mistake; gives an assertion that was answered."""
    token = http.headers["Authorization"].removeprefix("Bearer ")
    for params in ({"access_token": token}, {"key": token}, {"oauth_token": token}):
        http.get(f"/v1/{PARENT}/tuningJobs", params=params)
    http.get(f"/v1/{PARENT}/tuningJobs/{token[:40]}")
    http.get("/v1/nothing", headers={"Authorization": f"Bearer {token}x"})
    http.post(f"/v1/{PARENT}/tuningJobs", json={"serviceAccount": 7, token[:30]: 1})
    from google.oauth2 import service_account

    made = service_account.Credentials.from_service_account_file(str(service.key_file))
    assertion = made.with_always_use_jwt_access(True).with_scopes(["all"])._make_authorization_grant_assertion()
    form = {"grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer", "assertion": assertion}
    http.post("/token", data=form | {"assertion": assertion.decode()})
    http.post("/token", data=form | {"assertion": assertion.decode() + "x"})
    return str(assertion.decode())


def _is_log(path: Path) -> bool:
    return path.suffix in (".log", ".txt") or "logs" in path.parts or path.name.startswith("log")


def _database(path: Path) -> dict[str, str]:
    """Every table as text, but the secrets the service keeps to itself, which are the database's to guard."""
    engine = sa.create_engine(f"sqlite:///{path}")
    found = {}
    with engine.connect() as connection:
        for name in sa.inspect(engine).get_table_names():
            if name not in ("secret", "webhook"):
                rows = connection.exec_driver_sql(f'select * from "{name}"').all()
                found[name] = "\n".join(map(str, rows))
    engine.dispose()
    return found
