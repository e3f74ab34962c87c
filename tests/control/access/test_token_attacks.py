"""Every way we know to forge, stretch or borrow a token, against all three kinds of bearer: N tried, N refused."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from sarto.configuration import OidcIssuer
from sarto.control.access import account_store, projects
from sarto.control.access.authentication import TOKEN_EXCHANGE, Authenticator
from sarto.control.access.oidc import Provider, Providers
from sarto.errors import InvalidArgument, Unauthenticated
from sarto.storage.database import tables
from sarto.storage.database.database import Database

ADDRESS, ISSUER, AUDIENCE = "http://127.0.0.1:8080", "https://login.example.com", "sarto"


class Place:
    """A server that knows one provider, an account with a key, and a second server with the same names."""

    def __init__(self, home: Path) -> None:
        self.provider_key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        jwks = home / "jwks.json"
        row = jwt.algorithms.RSAAlgorithm.to_jwk(self.provider_key.public_key(), as_dict=True)
        jwks.write_text(json.dumps({"keys": [row | {"kid": "k1", "use": "sig"}]}))
        self.databases: list[Database] = []
        self.server, self.account, self.admin = self.make(home / "one", str(jwks))
        self.other, self.other_account, _ = self.make(home / "two", str(jwks))

    def make(self, home: Path, jwks: str) -> tuple[Authenticator, dict[str, Any], dict[str, Any]]:
        home.mkdir()
        database = Database.in_home(home)
        self.databases.append(database)
        tables.metadata.create_all(database.engine)
        admin = json.loads(account_store.open_home(database, home, "demo", ADDRESS).read_bytes())
        project = projects.find(database, "demo")
        assert project is not None
        with database.transaction() as connection:
            made = account_store.create(connection, project, "ada-account", "roles/aiplatform.user", 0.0)
            key = account_store.create_key(connection, made, "demo", 0.0)
        providers = Providers([OidcIssuer(ISSUER, AUDIENCE, jwks)])
        return Authenticator(database, ADDRESS, 3600, providers), key, admin

    def public(self, key_id: str) -> str:
        key = account_store.find_key(self.server.database, key_id)
        assert key is not None
        return key.public_key

    def user(
        self, secret: Any = None, algorithm: str = "RS256", header: dict[str, Any] | None = None, **claims: Any
    ) -> str:
        now = int(time.time())
        whole = {"iss": ISSUER, "aud": AUDIENCE, "sub": "7", "iat": now, "exp": now + 600}
        whole |= {"email": "ada@example.com", "email_verified": True} | claims
        whole = {name: value for name, value in whole.items() if value is not None}
        return jwt.encode(whole, secret or self.provider_key, algorithm, headers={"kid": "k1"} | (header or {}))

    def signed(self, algorithm: str = "RS256", header: dict[str, Any] | None = None, **claims: Any) -> str:
        key, now = self.account, int(time.time())
        whole = {"iss": key["client_email"], "iat": now, "exp": now + 600, "scope": "s"} | claims
        whole = {name: value for name, value in whole.items() if value is not None}
        headers = {"kid": key["private_key_id"]} | (header or {})
        return jwt.encode(whole, key["private_key"], algorithm, headers=headers)

    def access(self, secret: Any = None, **claims: Any) -> str:
        now = int(time.time())
        whole = {
            "sub": self.account["client_email"],
            "key": self.account["private_key_id"],
            "iat": now,
            "exp": now + 600,
        }
        whole = {name: value for name, value in (whole | claims).items() if value is not None}
        return jwt.encode(whole, secret or self.server._secret, "HS256", headers={"kid": "access"})


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    made = Place(tmp_path_factory.mktemp("tokens"))
    yield made
    for database in made.databases:
        database.close()


def by_hand(header: dict[str, Any], claims: dict[str, Any], secret: bytes | None) -> str:
    """An HS256 or unsigned token with any header: an attacker's library does not ask."""

    def encoded(raw: bytes) -> bytes:
        return base64.urlsafe_b64encode(raw).rstrip(b"=")

    body = encoded(json.dumps(header).encode()) + b"." + encoded(json.dumps(claims).encode())
    signature = b"" if secret is None else hmac.new(secret, body, hashlib.sha256).digest()
    return (body + b"." + encoded(signature)).decode()


def pem(key: rsa.RSAPrivateKey) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def claims_of(token: str) -> dict[str, Any]:
    return dict(jwt.decode(token, options={"verify_signature": False}))


def swapped(token: str, **changes: Any) -> str:
    """The same header and signature over other claims."""
    head, _, signature = token.split(".")
    body = base64.urlsafe_b64encode(json.dumps(claims_of(token) | changes).encode()).rstrip(b"=").decode()
    return f"{head}.{body}.{signature}"


KIDS = [
    "../../../etc/passwd", "/dev/null", "file:///dev/null", "https://evil.example/jwks", "' or '1'='1", "'; drop x--",
    "", "unknown", "access ", "ACCESS", "k1\x00", "a" * 3000, "%2e%2e%2f", "| id",
]  # fmt: skip
NOW = int(time.time())
TIMES: list[dict[str, Any]] = [
    {"exp": NOW - 3600}, {"exp": None}, {"iat": NOW + 3600}, {"nbf": NOW + 3600}, {"exp": "soon"}, {"iat": None},
]  # fmt: skip
HINTS = {
    "jku": "https://evil.example/k",
    "x5u": "https://evil.example/c",
    "x5c": ["MIIB"],
    "jwk": {"kty": "oct", "k": "AA"},
}


def attacks(place: Place) -> Iterator[tuple[str, str]]:
    key, email = place.account["private_key_id"], place.account["client_email"]
    evil = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    curve = ec.generate_private_key(ec.SECP256R1())
    kinds: dict[str, tuple[str, bytes]] = {
        "user": (place.user(), pem(place.provider_key)),
        "signed": (place.signed(), place.public(key).encode()),
        "access": (place.access(), place.public(key).encode()),
    }
    makers: dict[str, Callable[..., str]] = {"user": place.user, "signed": place.signed, "access": place.access}
    for kind, (good, public) in kinds.items():
        claims, kid = claims_of(good), jwt.get_unverified_header(good)["kid"]
        for algorithm in ("none", "None", "NONE", ""):
            yield f"{kind} alg {algorithm!r}", by_hand({"alg": algorithm, "kid": kid}, claims, None)
        for secret in (public, public.strip(), b"", b"secret", kid.encode()):
            yield f"{kind} HS256 under {secret[:9]!r}", by_hand({"alg": "HS256", "kid": kid}, claims, secret)
        for other in KIDS:
            yield f"{kind} kid {other[:20]!r}", by_hand({"alg": "HS256", "kid": other}, claims, b"")
        for name, value in HINTS.items():
            forged = jwt.encode(claims, evil, "RS256", headers={"kid": kid, name: value})
            yield f"{kind} with {name}", forged
        yield f"{kind} by another key", jwt.encode(claims, evil, "RS256", headers={"kid": kid})
        yield f"{kind} by a curve", jwt.encode(claims, curve, "ES256", headers={"kid": kid})
        yield f"{kind} without signature", good.rpartition(".")[0] + "."
        yield f"{kind} cut", good[:-8]
        yield f"{kind} with more parts", good + ".x"
        yield f"{kind} too long", good + "A" * 10_000
        yield f"{kind} other claims", swapped(good, exp=NOW + 9999, sub="root", email="root@example.com")
        for times in TIMES:
            yield f"{kind} {times}", makers[kind](**times)
    for algorithm in ("RS384", "RS512", "PS256"):
        yield f"user {algorithm}, which is not pinned", place.user(algorithm=algorithm)
        yield f"signed {algorithm}", place.signed(algorithm=algorithm)
    for audience in ("other", [AUDIENCE, "other"], f"{AUDIENCE}/", "", None, AUDIENCE.upper()):
        yield f"user for {audience}", place.user(aud=audience)
    for issuer in (
        "https://evil.example.com",
        f"{ISSUER}/",
        ISSUER.upper(),
        None,
        place.account["client_email"],
    ):
        yield f"user from {issuer}", place.user(iss=issuer)
    yield "user of unknown provider key", place.user(evil, header={"kid": "k2"})
    yield "user for thirty years", place.user(exp=NOW + 30 * 365 * 86_400)
    yield "signed for the token endpoint", place.signed(aud=f"{ADDRESS}/token", scope=None)
    yield "user without subject or verified address", place.user(sub="", email_verified=False)
    for audience in (
        "https://aiplatform.googleapis.com.evil.example/",
        "https://oauth2.googleapis.com/token",
        [ADDRESS],
    ):
        yield f"signed for {audience}", place.signed(scope=None, aud=audience)
    yield "signed in another's name", place.signed(iss=place.admin["client_email"])
    yield "signed for another subject", place.signed(sub=place.admin["client_email"])
    yield "signed with another account's key id", place.signed(header={"kid": place.admin["private_key_id"]})
    yield "signed for two days", place.signed(exp=NOW + 172_800)
    yield "signed with the access key id", place.signed(header={"kid": "access"})
    yield (
        "access of another server",
        jwt.encode(claims_of(place.access()), place.other._secret, "HS256", headers={"kid": "access"}),
    )
    foreign = place.other_account
    yield "key of another server", jwt.encode(
        {"iss": email, "iat": NOW, "exp": NOW + 600, "scope": "s"}, foreign["private_key"], "RS256",
        headers={"kid": foreign["private_key_id"]},
    )  # fmt: skip
    yield "access of an unknown key", place.access(key="f" * 40)
    own = account_store.find_key(place.server.database, key)
    assert own is not None
    yield "identity token as a bearer", place.server.identity_token(own.account, ADDRESS)
    yield from (
        ("nothing", ""),
        ("no token", "x"),
        ("dots", "..."),
        ("not ASCII", "é.b.c"),
        ("bytes", "\x00.\x00.\x00"),
    )


def test_every_attack_is_refused(place: Place, record_property: Callable[[str, object], None]) -> None:
    tried, accepted = 0, []
    for what, token in attacks(place):
        tried += 1
        try:
            accepted.append((what, place.server.authenticate(token)))
        except Unauthenticated:
            pass
    record_property("token_attacks", f"{tried - len(accepted)} of {tried} refused")
    assert accepted == [] and tried > 150


def test_what_the_attacks_imitate_is_accepted(place: Place) -> None:
    assert place.server.authenticate(place.user()).member == "user:ada@example.com"
    assert place.server.authenticate(place.user(email="Ada@Example.com")).member == "user:ada@example.com"
    unverified = place.server.authenticate(place.user(email_verified=False))
    assert unverified.member == "principal://login.example.com/subject/7"
    account = f"serviceAccount:{place.account['client_email']}"
    assert place.server.authenticate(place.signed()).member == account
    assert place.server.authenticate(place.access()).member == account


def test_a_disabled_or_deleted_account_or_key_ends_every_token_at_once(tmp_path: Path) -> None:
    place = Place(tmp_path)
    database = place.server.database
    tokens = [place.signed(), place.access()]
    assert all(place.server.authenticate(token) for token in tokens)
    accounts, keys = tables.service_account, tables.service_account_key
    changes = [
        (keys.update().values(disabled=True), keys.update().values(disabled=False)),
        (accounts.update().values(disabled=True), accounts.update().values(disabled=False)),
        (keys.update().values(expire_time=1.0), keys.update().values(expire_time=None)),
        (keys.update().values(valid_after=1e11), keys.update().values(valid_after=None)),
        (keys.delete(), None),
    ]
    for change, back in changes:
        with database.transaction() as connection:
            connection.execute(change)
        database.rights_changes += 1
        for token in tokens:
            with pytest.raises(Unauthenticated):
                place.server.authenticate(token)
        if back is not None:
            with database.transaction() as connection:
                connection.execute(back)
            database.rights_changes += 1
            assert all(place.server.authenticate(token) for token in tokens)
    for one in place.databases:
        one.close()


def test_unsafe_providers_are_refused_by_name(tmp_path: Path) -> None:
    for issuer, words in [
        (OidcIssuer(ISSUER, AUDIENCE, "x.json", ("HS256",)), "HS256"),
        (OidcIssuer(ISSUER, AUDIENCE, "x.json", ("none",)), "none"),
        (OidcIssuer(ISSUER, AUDIENCE, "x.json", ()), "no algorithm"),
        (OidcIssuer(ISSUER, "", "x.json"), "audience"),
        (OidcIssuer(ISSUER, AUDIENCE, "http://login.example.com/keys"), "not https"),
        (OidcIssuer(f"{ISSUER}/subject/x", AUDIENCE, "x.json"), "/subject/"),
    ]:
        with pytest.raises(InvalidArgument, match=words):
            Provider(issuer)


CORP_A, CORP_B = "https://login.corp-a.com", "https://login.corp-b.com"


def test_a_provider_signs_nobody_in_as_the_user_of_another(tmp_path: Path) -> None:
    place = Place(tmp_path)
    jwks, ada = str(tmp_path / "jwks.json"), "ada@corp-a.com"

    def server(domains_a: set[str], domains_b: set[str]) -> Authenticator:
        a = OidcIssuer(CORP_A, AUDIENCE, jwks, email_domains=frozenset(domains_a))
        b = OidcIssuer(CORP_B, AUDIENCE, jwks, email_domains=frozenset(domains_b))
        return Authenticator(place.server.database, ADDRESS, 3600, Providers([a, b]))

    for domains_a, domains_b in ((set(), set()), ({"corp-a.com"}, set()), ({"corp-a.com"}, {"corp-b.com"})):
        both = server(domains_a, domains_b)
        assert both.authenticate(place.user(iss=CORP_B, email=ada)).member == "principal://login.corp-b.com/subject/7"
        form = {"grant_type": TOKEN_EXCHANGE, "subject_token": place.user(iss=CORP_B, email=ada)}
        exchanged = both.exchange(form)["access_token"]
        assert both.authenticate(exchanged).member == "principal://login.corp-b.com/subject/7"
        of_a = both.authenticate(place.user(iss=CORP_A, email="Ada@Corp-A.com")).member
        assert of_a == (f"user:{ada}" if domains_a else "principal://login.corp-a.com/subject/7")
    alone = Authenticator(place.server.database, ADDRESS, 3600, Providers([OidcIssuer(CORP_B, AUDIENCE, jwks)]))
    form = {"grant_type": TOKEN_EXCHANGE, "subject_token": place.user(iss=CORP_B, email=ada)}
    before = alone.exchange(form)["access_token"]
    assert alone.authenticate(before).member == f"user:{ada}"
    with pytest.raises(Unauthenticated, match="any more"):
        server({"corp-a.com"}, set()).authenticate(before)
    for one in place.databases:
        one.close()


@pytest.mark.parametrize(
    "pair",
    [
        (OidcIssuer(CORP_A, AUDIENCE, "x"), OidcIssuer(f"{CORP_A}/", AUDIENCE, "x")),
        (OidcIssuer(CORP_A, AUDIENCE, "x"), OidcIssuer(CORP_A, "other", "x")),
        (
            OidcIssuer(CORP_A, AUDIENCE, "x", email_domains=frozenset({"corp.com"})),
            OidcIssuer(CORP_B, AUDIENCE, "x", email_domains=frozenset({"corp.com"})),
        ),
    ],
)
def test_two_providers_that_could_name_the_same_user_are_refused(pair: tuple[OidcIssuer, OidcIssuer]) -> None:
    with pytest.raises(InvalidArgument, match="is in two of them"):
        Providers(pair)


def test_unknown_key_ids_do_not_make_the_server_ask_the_provider_again_and_again(tmp_path: Path) -> None:
    place = Place(tmp_path)
    jwks = tmp_path / "jwks.json"
    assert place.server.authenticate(place.user())
    jwks.unlink()
    for index in range(20):
        with pytest.raises(Unauthenticated, match="publishes no key"):
            place.server.authenticate(place.user(header={"kid": f"k{index + 2}"}))
    assert place.server.authenticate(place.user(sub="8"))
    for one in place.databases:
        one.close()
