"""Two OIDC providers over HTTP, one honest, one sick or hostile: neither stops nor imitates the other."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from sarto.configuration import OidcIssuer
from sarto.control.access import authorization, projects
from tests.api.doors import House, house

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
DRIP_SECONDS = 0.2


class Provider:
    """One that answers each connection as `answer` does; counts them."""

    def __init__(self, name: str, answer: Callable[[socket.socket, bytes], None] | None = None) -> None:
        self.issuer, self.domain = f"https://login.{name}", name
        self.key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.asked: list[str] = []
        self._answer = answer or self._honestly
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.jwks = f"http://127.0.0.1:{self._listener.getsockname()[1]}/keys"
        self.stopped = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def keys(self, kid: str = "k1") -> bytes:
        row = jwt.algorithms.RSAAlgorithm.to_jwk(self.key.public_key(), as_dict=True)
        return json.dumps({"keys": [row | {"kid": kid, "use": "sig"}]}).encode()

    def token(self, key: rsa.RSAPrivateKey | None = None, kid: str = "k1", **claims: Any) -> str:
        now = int(time.time())
        whole = {"iss": self.issuer, "aud": "sarto", "sub": "7", "iat": now, "exp": now + 600}
        whole |= {"email": f"ada@{self.domain}", "email_verified": True} | claims
        payload = json.dumps(whole).encode()  # claims of any kind, also such as a library refuses to write
        return jwt.PyJWS().encode(payload, key or self.key, "RS256", headers={"kid": kid})

    def setting(self) -> OidcIssuer:
        return OidcIssuer(issuer=self.issuer, audience="sarto", jwks=self.jwks, email_domains=frozenset({self.domain}))

    def close(self) -> None:
        self.stopped.set()
        self._listener.close()

    def _honestly(self, connection: socket.socket, keys: bytes) -> None:
        connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(keys) + keys)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            asked = connection.recv(10_000).decode()
            self.asked.append(asked.split(" ", 2)[1])
            self._answer(connection, self.keys())


def _dripping(before: bytes) -> Callable[[Provider], Callable[[socket.socket, bytes], None]]:
    def made(of: Provider) -> Callable[[socket.socket, bytes], None]:
        def answer(connection: socket.socket, _: bytes) -> None:
            connection.sendall(before)
            while not of.stopped.wait(DRIP_SECONDS):
                connection.sendall(b"x")

        return answer

    return made


def _hanging(of: Provider) -> Callable[[socket.socket, bytes], None]:
    return lambda connection, _: of.stopped.wait(60) and None


def _endless(of: Provider) -> Callable[[socket.socket, bytes], None]:
    def answer(connection: socket.socket, _: bytes) -> None:
        connection.sendall(HEAD + b"\r\n")
        while not of.stopped.is_set():
            connection.sendall(b" " * 100_000)

    return answer


def _crowded(of: Provider) -> Callable[[socket.socket, bytes], None]:
    """A megabyte of keys, the good one among them."""

    def answer(connection: socket.socket, keys: bytes) -> None:
        [row] = json.loads(keys)["keys"]
        many = json.dumps({"keys": [row | {"kid": f"k{number}"} for number in range(2000)]}).encode()[:999_999]
        of._honestly(connection, many if many.endswith(b"}") else json.dumps({"keys": [row] * 1500}).encode())

    return answer


def _elsewhere(to: str) -> Callable[[Provider], Callable[[socket.socket, bytes], None]]:
    return lambda of: (
        lambda connection, _: connection.sendall(
            f"HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n".encode()
        )
    )


@contextmanager
def providers() -> Iterator[tuple[Provider, dict[str, Provider]]]:
    """An honest one, and sick ones by what is wrong with them."""
    honest = Provider("corp-a.com")
    kinds = {
        "hangs": _hanging,
        "drips-its-head": _dripping(b"HTTP/1.1 200 OK\r\nX: "),
        "drips-its-body": _dripping(HEAD + b"\r\n"),
        "has-no-end": _endless,
        "has-too-many-keys": _crowded,
        "leads-elsewhere": _elsewhere(honest.jwks),
    }
    sick = {}
    for name, kind in kinds.items():
        one = sick[name] = Provider(f"{name}.example")
        one._answer = kind(one)
    yield honest, sick
    for one in (honest, *sick.values()):
        one.close()


def bind(place: House, provider: Provider) -> None:
    found = projects.find(place.services.database, "demo")
    assert found is not None
    with place.services.database.transaction() as connection:
        authorization.bind(connection, f"projects/{found.number}", "roles/owner", f"user:ada@{provider.domain}")
    place.services.database.rights_changes += 1


async def sign_in(place: House, token: str) -> tuple[int, float]:
    began = time.monotonic()
    answer = await place.client.get("/v3/projects/demo", headers={"Authorization": f"Bearer {token}"})
    return answer.status_code, time.monotonic() - began


def test_a_sick_provider_stops_nobody_who_signs_in_by_another(tmp_path: Path) -> None:
    async def told() -> None:
        with providers() as (honest, sick):
            settings = [one.setting() for one in (honest, *sick.values())]
            async with house(tmp_path, oidc_issuers=settings) as place:
                for one in (honest, *sick.values()):
                    bind(place, one)
                forged = [  # nobody but the sick provider could sign these; anybody can send them
                    one.token(honest.key, kid=f"k{number % 3 + 1}") for one in sick.values() for number in range(30)
                ]
                crowd = [asyncio.create_task(sign_in(place, token)) for token in forged]
                await asyncio.sleep(0)
                waits = []
                for number in range(20):
                    status, seconds = await sign_in(place, honest.token(sub=str(number)))
                    assert status == 200, number
                    waits.append(seconds)
                answers = await asyncio.gather(*crowd)
                assert sorted(waits)[-2] < 1.5, waits
                assert {status for status, _ in answers} <= {401, 503}
                assert max(seconds for _, seconds in answers) < 12
                assert honest.asked == ["/keys"]
                assert all(len(one.asked) <= 1 for one in sick.values()), {n: one.asked for n, one in sick.items()}

    asyncio.run(told())


@pytest.fixture
def pair() -> Iterator[tuple[Provider, Provider]]:
    made = Provider("corp-a.com"), Provider("corp-b.com")
    yield made
    for one in made:
        one.close()


def test_no_token_of_one_passes_for_one_of_the_other(tmp_path: Path, pair: tuple[Provider, Provider]) -> None:
    a, b = pair
    b._answer = lambda connection, _: b._honestly(  # it publishes keys of its own under the ids of the other's too
        connection, json.dumps({"keys": [json.loads(b.keys(kid))["keys"][0] for kid in ("k1", "k2")]}).encode()
    )
    tried = {
        "its issuer, the other's key and id": a.token(b.key, kid="k2"),
        "its issuer, the other's key, its own id": a.token(b.key),
        "its issuer and key, the other's id": a.token(kid="k2"),
        "the other's issuer under its key": b.token(a.key),
        "the other's issuer under its key and id": b.token(a.key, kid="k2"),
        "both issuers": a.token(b.key, iss=[a.issuer, b.issuer]),
        "the issuer with a slash": b.token(iss=a.issuer + "/"),
        "the issuer in capitals": b.token(iss=a.issuer.upper()),
        "the address of the keys as its issuer": b.token(iss=a.jwks),
        "for both audiences": a.token(aud=["sarto", b.issuer]),
        "keys named in the token": jwt.encode(
            jwt.decode(a.token(), options={"verify_signature": False}), b.key, "RS256",
            headers={"kid": "k1", "jku": b.jwks, "x5u": b.jwks},
        ),
    }  # fmt: skip

    async def told() -> None:
        async with house(tmp_path, oidc_issuers=[a.setting(), b.setting()]) as place:
            bind(place, a)
            assert (await sign_in(place, a.token()))[0] == 200
            for what, token in tried.items():
                assert (await sign_in(place, token))[0] == 401, what
            assert (await sign_in(place, b.token()))[0] == 403  # himself, who has no right here
            assert (await sign_in(place, b.token(email=f"ada@{a.domain}")))[0] == 403
            assert (await sign_in(place, b.token(kid="k2", email=f"ada@{a.domain}")))[0] == 403
            form = {
                "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
                "subject_token_type": "urn:ietf:params:oauth:token-type:id_token",
                "requested_token_type": "urn:ietf:params:oauth:token-type:access_token",
            }
            borrowed = {"subject_token": b.token(email=f"ada@{a.domain}")}
            answer = await place.client.post("/sts/token", data=form | borrowed)
            assert (await sign_in(place, answer.json()["access_token"]))[0] == 403
            forged = {"subject_token": a.token(b.key, kid="k2")}
            assert (await place.client.post("/sts/token", data=form | forged)).json()["error"] == "invalid_grant"

    asyncio.run(told())
