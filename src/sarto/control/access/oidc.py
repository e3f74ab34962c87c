"""Users of OIDC providers: an ID token as the bearer, verified with the provider's published keys.

The configuration pins issuer, audience and algorithms. No address in a token is ever fetched.
"""

from __future__ import annotations

import logging
import re
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import jwt
import orjson

from sarto.configuration import OidcIssuer
from sarto.errors import InvalidArgument, Unauthenticated, Unavailable

logger = logging.getLogger(__name__)

ALGORITHMS = frozenset("RS256 RS384 RS512 PS256 PS384 PS512 ES256 ES384 ES512 EdDSA".split())
"""Asymmetric algorithms only, whose keys only the provider has."""
FRESH_SECONDS = 3600.0
LEAST_SECONDS = 30.0
"""Least time between two fetches of a provider's keys, for any key ids in tokens."""
FETCH_SECONDS = 5.0
"""Timeout of a whole fetch, from the connection to the end of the response."""
MOST_BYTES, MOST_KEYS = 1_000_000, 100
MOST_WAITING = 4
"""Callers that wait for one provider's keys at once; anyone can claim to be its user."""
SKEW_SECONDS = 30
MOST_LIFE_SECONDS = 86_400
"""Longest life of a token; providers give an hour, seldom a day."""
EMAIL = re.compile(r"[^@\s:/]{1,64}@[A-Za-z0-9.-]{1,190}")
SUBJECT = re.compile(r"[!-~]{1,100}")


@dataclass(frozen=True)
class User:
    """The user of a token: `kind` and `name` form a member of policies."""

    kind: str
    name: str
    expiry: float


class Provider:
    """One issuer and its keys, fetched when first needed. Raises InvalidArgument for an unsafe setting.

    `is_only` means that there is no other provider whose users its addresses could name."""

    def __init__(self, issuer: OidcIssuer, is_only: bool = True) -> None:
        wrong = sorted(set(issuer.algorithms) - ALGORITHMS)
        if wrong or not issuer.algorithms:
            raise InvalidArgument(
                f"oidc_issuers: {issuer.issuer} allows {', '.join(wrong) or 'no algorithm'}; use some of "
                + ", ".join(sorted(ALGORITHMS))
            )
        if not issuer.issuer or not issuer.audience:
            raise InvalidArgument("oidc_issuers: issuer and audience are required, else any token would be valid.")
        address = urlsplit(issuer.jwks)
        if address.scheme and address.scheme != "https" and address.hostname not in ("127.0.0.1", "localhost", "::1"):
            raise InvalidArgument(f"oidc_issuers: {issuer.jwks} is not https; its keys could be forged.")
        if "/subject/" in issuer.issuer:
            raise InvalidArgument(f"oidc_issuers: {issuer.issuer} holds /subject/, which divides issuer from subject.")
        self.issuer = issuer
        self._is_only = is_only
        self._keys: Mapping[str, Any] = {}
        self._looked = float("-inf")
        self._lock, self._seats = threading.Lock(), threading.BoundedSemaphore(MOST_WAITING)

    def verify(self, token: str, key_id: str) -> User:
        """Verify a token. Raises Unauthenticated, and Unavailable when too many callers wait for the provider's
        keys."""
        key = self._key(key_id)
        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=list(self.issuer.algorithms),
                audience=self.issuer.audience,
                issuer=self.issuer.issuer,
                leeway=SKEW_SECONDS,
                options={"require": ["iss", "aud", "sub", "iat", "exp"]},
            )
        except (jwt.PyJWTError, TypeError, ValueError) as error:
            raise Unauthenticated(f"The token of {self.issuer.issuer} is not valid: {error}") from None
        if isinstance(claims["aud"], list) and len(claims["aud"]) > 1 and claims.get("azp") != self.issuer.audience:
            raise Unauthenticated("The token has several audiences and was not issued to this one.")
        if claims["exp"] - claims["iat"] > MOST_LIFE_SECONDS:
            raise Unauthenticated(f"The token is valid for longer than {MOST_LIFE_SECONDS} seconds.")
        return self._user(claims)

    def names(self, kind: str, name: str) -> bool:
        """Whether this provider may authenticate the member `kind:name`."""
        if kind == "principal":
            return name.startswith(f"//{_issuer_name(self.issuer)}/subject/")
        if self.issuer.email_domains:
            return name.rpartition("@")[2].lower() in self.issuer.email_domains
        return self._is_only

    def _user(self, claims: Mapping[str, Any]) -> User:
        expiry, email = float(claims["exp"]), claims.get("email")
        is_verified = claims.get("email_verified") is True
        if is_verified and isinstance(email, str) and EMAIL.fullmatch(email) and self.names("user", email):
            return User("user", email.lower(), expiry)
        subject = claims["sub"]
        if not isinstance(subject, str) or not SUBJECT.fullmatch(subject):
            raise Unauthenticated("The token names no subject that a policy could name.")
        return User("principal", f"//{_issuer_name(self.issuer)}/subject/{subject}", expiry)

    def _key(self, key_id: str) -> Any:
        if self._is_due(key_id):
            if self._seats.acquire(blocking=False):
                try:
                    self._look(key_id)
                finally:
                    self._seats.release()
            elif key_id not in self._keys:
                raise Unavailable(f"The keys of {self.issuer.issuer} are being fetched; try again in a moment.")
        keys = self._keys
        if key_id not in keys:
            raise Unauthenticated(f"{self.issuer.issuer} publishes no key with the token's key id.")
        return keys[key_id]

    def _is_due(self, key_id: str) -> bool:
        """Whether to fetch the keys, or to wait for a fetch in progress."""
        age = time.monotonic() - self._looked
        is_known = key_id in self._keys
        return age > FRESH_SECONDS or (not is_known and (age > LEAST_SECONDS or self._lock.locked()))

    def _look(self, key_id: str) -> None:
        """Fetch the keys. Concurrent callers wait, unless their key is known."""
        if not self._lock.acquire(blocking=key_id not in self._keys):
            return
        try:
            age = time.monotonic() - self._looked
            if age > FRESH_SECONDS or (key_id not in self._keys and age > LEAST_SECONDS):
                self._looked = time.monotonic()
                self._keys = self._load() or self._keys
        finally:
            self._lock.release()

    def _load(self) -> dict[str, Any]:
        """The provider's keys by id; empty when it is unreachable, which is logged."""
        try:
            key_set = orjson.loads(_read(self.issuer.jwks))
            if len(key_set["keys"]) > MOST_KEYS:
                raise ValueError(f"more than {MOST_KEYS} keys")
            rows = [row for row in key_set["keys"] if row.get("use", "sig") == "sig" and row.get("kty") != "oct"]
            return {str(row.get("kid", "")): jwt.PyJWK(row).key for row in rows}
        except (OSError, httpx.HTTPError, ValueError, KeyError, TypeError, AttributeError, jwt.PyJWTError) as error:
            logger.warning("keys of provider not read", extra={"issuer": self.issuer.issuer, "reason": str(error)})
            return {}


class Providers:
    """The configured providers, by issuer. Raises InvalidArgument if two of them could name the same user."""

    def __init__(self, issuers: Iterable[OidcIssuer] = ()) -> None:
        configured = list(issuers)
        self._by_issuer = {one.issuer: Provider(one, len(configured) == 1) for one in configured}
        issuer_names = [_issuer_name(one) for one in configured]
        domains = [domain for one in configured for domain in one.email_domains]
        for what, names in (("the issuer", issuer_names), ("the domain", domains)):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise InvalidArgument(
                    f"oidc_issuers: {what} {', '.join(twice)} is in two of them, so that either could"
                    " sign in as users of the other; keep it in one."
                )

    def still_names(self, issuer: object, kind: str, name: str) -> bool:
        """Whether the settings still allow the issuer to authenticate this member."""
        provider = self._by_issuer.get(issuer) if isinstance(issuer, str) else None
        return provider is not None and provider.names(kind, name)

    def of(self, token: str) -> Provider | None:
        """The provider of a token's issuer; nothing in the token is verified yet."""
        if not self._by_issuer:
            return None
        try:
            claims = jwt.decode(token, options={"verify_signature": False})
        except (jwt.PyJWTError, ValueError):
            return None
        issuer = claims.get("iss")
        return self._by_issuer.get(issuer) if isinstance(issuer, str) else None


def _issuer_name(issuer: OidcIssuer) -> str:
    """The issuer's name in members of policies."""
    return issuer.issuer.partition("://")[2].rstrip("/")


def _read(address: str) -> bytes:
    if not urlsplit(address).scheme:
        return Path(address).read_bytes()
    until = time.monotonic() + FETCH_SECONDS
    with _cut_at(until) as extensions, httpx.Client(timeout=FETCH_SECONDS, follow_redirects=False) as client:
        plain = {"Accept-Encoding": "identity"}  # the size of compressed keys would be known too late
        with client.stream("GET", address, headers=plain, extensions=extensions) as answer:
            answer.raise_for_status()
            content = b""
            for chunk in answer.iter_raw():
                content += chunk
                if len(content) > MOST_BYTES:
                    raise ValueError(f"more than {MOST_BYTES} bytes")
        if time.monotonic() >= until:  # it was shut down, which may read like the end of a body
            raise TimeoutError(f"no whole answer within {FETCH_SECONDS:g} seconds")
        return content


@contextmanager
def _cut_at(until: float) -> Iterator[dict[str, Any]]:
    """Request extensions that close connections at a deadline: a socket's own timeout restarts with each byte."""
    opened: list[socket.socket] = []

    def shut_down() -> None:
        for connection in opened:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def trace(event: str, info: Mapping[str, Any]) -> None:
        if event == "connection.connect_tcp.complete":
            opened.append(info["return_value"].get_extra_info("socket").dup())
            if time.monotonic() >= until:
                shut_down()

    timer = threading.Timer(max(0.0, until - time.monotonic()), shut_down)
    timer.daemon = True
    timer.start()
    try:
        yield {"trace": trace}
    finally:
        timer.cancel()
        timer.join()
        for connection in opened:
            connection.close()
