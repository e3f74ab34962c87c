"""Tokens: what is accepted, and every way a token can be wrong."""

from __future__ import annotations

import json
import stat
import time
from pathlib import Path
from typing import Any

import jwt
import pytest

from sarto.control.access import account_store, authentication, authorization, projects
from sarto.errors import AlreadyExists, FailedPrecondition, InvalidArgument, PermissionDenied, Unauthenticated
from sarto.storage.database import tables
from sarto.storage.database.database import Database

ADDRESS = "http://127.0.0.1:8080"
GOOGLE = "https://oauth2.googleapis.com/token"


@pytest.fixture
def database(tmp_path: Path) -> Any:
    database = Database.in_home(tmp_path)
    tables.metadata.create_all(database.engine)
    yield database
    database.close()


@pytest.fixture
def key(database: Database, tmp_path: Path) -> dict[str, Any]:
    return opened(database, tmp_path)


def opened(database: Database, home: Path, address: str = ADDRESS) -> dict[str, Any]:
    """The key file that the start of a home leaves."""
    path = account_store.open_home(database, home, "demo", address)
    assert path == home / "credentials" / "admin.json"
    return dict(json.loads(path.read_bytes()))


@pytest.fixture
def server(database: Database, key: dict[str, Any]) -> authentication.Authenticator:
    return authentication.Authenticator(database, ADDRESS, 3600)


def signed(
    key: dict[str, Any], *, headers: dict[str, Any] | None = None, algorithm: str = "RS256", **claims: Any
) -> str:
    now = int(time.time())
    payload = {"iss": key["client_email"], "sub": key["client_email"], "iat": now, "exp": now + 3600} | claims
    payload = {name: value for name, value in payload.items() if value is not None}
    return jwt.encode(
        payload, key["private_key"], algorithm=algorithm, headers={"kid": key["private_key_id"]} | (headers or {})
    )


def granted(server: authentication.Authenticator, assertion: str) -> dict[str, Any]:
    return server.grant({"grant_type": authentication.JWT_BEARER, "assertion": assertion})


def test_a_fresh_home_gets_a_private_key_file_that_follows_the_address(database: Database, tmp_path: Path) -> None:
    first = opened(database, tmp_path)
    assert first["client_email"] == "sarto-admin@sys.iam.gserviceaccount.com"
    assert stat.S_IMODE((tmp_path / "credentials" / "admin.json").stat().st_mode) == 0o600
    assert first["token_uri"] == f"{ADDRESS}/token" and first["project_id"] == "demo"
    second = opened(database, tmp_path, "http://127.0.0.1:9")
    assert second["token_uri"] == "http://127.0.0.1:9/token"
    assert second["private_key_id"] == first["private_key_id"]
    assert len(projects.all_projects(database)) == 1


def test_a_lost_or_deleted_key_is_made_anew_only_when_somebody_asks_and_a_broken_file_is_refused(
    database: Database, tmp_path: Path
) -> None:
    first, path = opened(database, tmp_path), tmp_path / "credentials" / "admin.json"
    path.unlink()
    assert account_store.open_home(database, tmp_path, "demo", ADDRESS) is None and not path.exists()
    second = json.loads(account_store.renew_administrator(database, tmp_path, "demo", ADDRESS, 0).read_bytes())
    assert second["private_key_id"] != first["private_key_id"] and second["client_email"] == first["client_email"]
    assert opened(database, tmp_path) == second
    with database.transaction() as connection:
        connection.execute(tables.service_account_key.delete())
    assert account_store.open_home(database, tmp_path, "demo", ADDRESS) is None
    path.write_text("half a f")
    with pytest.raises(FailedPrecondition, match="not a service account key file"):
        account_store.open_home(database, tmp_path, "demo", ADDRESS)


def test_an_assertion_is_exchanged_for_a_token_that_names_its_account(
    server: authentication.Authenticator, key: dict[str, Any]
) -> None:
    for audience in (GOOGLE, f"{ADDRESS}/token", "http://localhost:8080/token"):
        answer = granted(server, signed(key, aud=audience, scope="https://www.googleapis.com/auth/cloud-platform"))
        assert answer["token_type"] == "Bearer" and answer["expires_in"] == 3600
        principal = server.authenticate(answer["access_token"])
        assert principal.email == key["client_email"]
        assert server.remembered(answer["access_token"]) == principal


def test_an_identity_token_verifies_under_the_published_key(
    server: authentication.Authenticator, key: dict[str, Any]
) -> None:
    answer = granted(server, signed(key, aud=GOOGLE, target_audience="https://service.example"))
    public = jwt.PyJWK(server.public_keys()["keys"][0])
    claims = jwt.decode(answer["id_token"], public, algorithms=["RS256"], audience="https://service.example")
    assert claims["email"] == key["client_email"]
    with pytest.raises(Unauthenticated):
        server.authenticate(answer["id_token"])


@pytest.mark.parametrize(
    "claims",
    [
        {"scope": "https://www.googleapis.com/auth/cloud-platform"},
        {"aud": "https://aiplatform.googleapis.com/"},
        {"aud": f"{ADDRESS}/"},
        {"aud": "http://localhost:8080/google.cloud.aiplatform.v1.ModelService"},
    ],
)
def test_a_self_signed_token_is_a_bearer(
    server: authentication.Authenticator, key: dict[str, Any], claims: dict[str, Any]
) -> None:
    assert server.authenticate(signed(key, **claims)).email == key["client_email"]


@pytest.mark.parametrize(
    "claims",
    [
        {"aud": "https://aiplatform.googleapis.com.example.org/"},
        {"aud": "http://aiplatform.googleapis.com/"},
        {"aud": "https://127.0.0.1:8080.example.org/"},
        {"aud": ["https://aiplatform.googleapis.com/"]},
        {"aud": GOOGLE},
        {"aud": f"{ADDRESS}/token"},
        {"aud": "http://localhost:8080/sts/token"},
        {},
        {"scope": ""},
        {"scope": "s", "exp": int(time.time()) + 2 * 86400},
        {"scope": "s", "exp": int(time.time()) - 60},
        {"scope": "s", "iat": int(time.time()) + 600},
        {"scope": "s", "iat": None},
        {"scope": "s", "exp": None},
        {"scope": "s", "iss": "other@demo.iam.gserviceaccount.com"},
        {"scope": "s", "sub": "other@demo.iam.gserviceaccount.com"},
    ],
)
def test_a_self_signed_token_with_wrong_claims_is_refused(
    server: authentication.Authenticator, key: dict[str, Any], claims: dict[str, Any]
) -> None:
    with pytest.raises(Unauthenticated):
        server.authenticate(signed(key, **claims))


def test_kid_and_algorithm_tricks_are_refused(
    server: authentication.Authenticator, database: Database, key: dict[str, Any]
) -> None:
    public = account_store.find_key(database, key["private_key_id"])
    assert public is not None
    now = int(time.time())
    claims = {"iss": key["client_email"], "sub": key["client_email"], "key": key["private_key_id"], "scope": "s"}
    claims |= {"iat": now, "exp": now + 60}
    project = projects.find(database, "demo")
    assert project is not None
    with database.transaction() as connection:
        other = account_store.create(connection, project, "other-account", "roles/aiplatform.viewer", 0.0)
        other_key = account_store.create_key(connection, other, "demo", 0.0)
    tricks = [
        jwt.encode(claims, None, algorithm="none", headers={"kid": key["private_key_id"]}),
        jwt.encode(claims, None, algorithm="none", headers={"kid": "access"}),
        _hmac(claims, public.public_key, key["private_key_id"]),
        _hmac(claims, "", "access"),
        signed(key, headers={"kid": "access"}, scope="s"),
        signed(key, headers={"kid": other_key["private_key_id"]}, scope="s"),
        signed(key, headers={"kid": "../../etc/passwd"}, scope="s"),
        signed(key, headers={"kid": "' or 1=1 --"}, scope="s"),
        signed(key, algorithm="RS512", scope="s"),
        signed(other_key | {"client_email": key["client_email"]}, scope="s"),
        "",
        "x",
        "a.b.c",
        "é.b.c",
        "x" * 100_000,
    ]
    for trick in tricks:
        with pytest.raises(Unauthenticated):
            server.authenticate(trick)


def _hmac(claims: dict[str, Any], secret: str, kid: str) -> str:
    """An HS256 token under any bytes; the library refuses public keys as secrets, an attacker's does not."""
    import base64
    import hashlib
    import hmac

    def encoded(raw: bytes) -> bytes:
        return base64.urlsafe_b64encode(raw).rstrip(b"=")

    body = encoded(json.dumps({"alg": "HS256", "kid": kid}).encode()) + b"." + encoded(json.dumps(claims).encode())
    return (body + b"." + encoded(hmac.new(secret.encode(), body, hashlib.sha256).digest())).decode()


def test_a_disabled_key_stops_new_tokens_and_old_ones(
    server: authentication.Authenticator, database: Database, key: dict[str, Any]
) -> None:
    token = granted(server, signed(key, aud=GOOGLE))["access_token"]
    with database.transaction() as connection:
        connection.execute(tables.service_account_key.update().values(disabled=True))
    database.rights_changes += 1
    with pytest.raises(authentication.InvalidGrant):
        granted(server, signed(key, aud=GOOGLE))
    with pytest.raises(Unauthenticated):
        server.authenticate(token)


def test_a_token_of_another_home_is_refused(
    server: authentication.Authenticator, tmp_path: Path, key: dict[str, Any]
) -> None:
    (tmp_path / "other").mkdir()
    database = Database.in_home(tmp_path / "other")
    tables.metadata.create_all(database.engine)
    foreign = opened(database, tmp_path / "other")
    other = authentication.Authenticator(database, ADDRESS, 3600)
    for token in (granted(other, signed(foreign, aud=GOOGLE))["access_token"], signed(foreign, scope="s")):
        assert other.authenticate(token)
        with pytest.raises(Unauthenticated):
            server.authenticate(token)
    database.close()


def test_wrong_grants_say_what_is_wrong(server: authentication.Authenticator, key: dict[str, Any]) -> None:
    for form, code in [
        ({}, "unsupported_grant_type"),
        ({"grant_type": "password"}, "unsupported_grant_type"),
        ({"grant_type": authentication.JWT_BEARER}, "invalid_request"),
        ({"grant_type": authentication.JWT_BEARER, "assertion": "x"}, "invalid_grant"),
        (
            {"grant_type": authentication.JWT_BEARER, "assertion": signed(key, aud="https://elsewhere/token")},
            "invalid_grant",
        ),
    ]:
        with pytest.raises(authentication.InvalidGrant) as caught:
            server.grant(form)
        assert caught.value.oauth_code == code


def test_an_exchanged_token_lives_no_longer_than_its_subject(
    server: authentication.Authenticator, key: dict[str, Any]
) -> None:
    subject = signed(key, scope="s", exp=int(time.time()) + 100)
    answer = server.exchange({"grant_type": authentication.TOKEN_EXCHANGE, "subject_token": subject + "\n"})
    assert answer["expires_in"] <= 100 and server.authenticate(answer["access_token"])
    again = server.exchange({"grant_type": authentication.TOKEN_EXCHANGE, "subject_token": answer["access_token"]})
    assert again["expires_in"] <= 100
    with pytest.raises(authentication.InvalidGrant):
        server.exchange({"grant_type": authentication.TOKEN_EXCHANGE, "subject_token": "x"})


def test_a_foreign_project_and_an_unknown_one_answer_alike(database: Database, key: dict[str, Any]) -> None:
    with database.transaction() as connection:
        mine = projects.insert(connection, "mine", 0.0)
        projects.insert(connection, "theirs", 0.0)
        me, owner, viewer, nobody = (
            authorization.Principal(f"{name}@mine", mine.number) for name in ("me", "o", "v", "n")
        )
        for who, role in ((me, "roles/aiplatform.user"), (owner, "roles/owner"), (viewer, "roles/aiplatform.viewer")):
            authorization.bind(connection, f"projects/{mine.number}", role, who.member)
    assert authorization.require(database, me, "aiplatform.tuningJobs.get", "mine") == mine
    assert authorization.require(database, me, "aiplatform.tuningJobs.get", mine.number) == mine
    messages = []
    for name in ("theirs", "nobody"):
        with pytest.raises(PermissionDenied) as caught:
            authorization.require(database, me, "aiplatform.tuningJobs.get", name)
        messages.append(caught.value.message.replace(name, "X"))
    assert messages[0] == messages[1]
    assert [p.id for p in authorization.visible_projects(database, owner)] == ["mine"]
    with pytest.raises(PermissionDenied):
        authorization.require(database, me, "resourcemanager.projects.create", "mine")
    with pytest.raises(PermissionDenied):
        authorization.require(database, viewer, "aiplatform.models.delete", "mine")
    with pytest.raises(PermissionDenied):
        authorization.require(database, nobody, "aiplatform.models.get", "mine")


def test_bad_and_taken_project_ids_are_refused(database: Database, key: dict[str, Any]) -> None:
    with database.transaction() as connection:
        for bad in ("A", "a", "12345", "a/b", "a:b", "x" * 31):
            with pytest.raises(InvalidArgument):
                projects.insert(connection, bad, 0.0)
        with pytest.raises(AlreadyExists):
            projects.insert(connection, "demo", 0.0)
