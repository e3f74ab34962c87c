"""Users of OIDC providers: an ID token as the bearer, verified under the provider's published keys.

The configuration pins issuer, audience and algorithms; nothing in a token chooses them, and no address in a token is
ever fetched. Used by `auth`.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import jwt
import orjson

from sarto.errors import InvalidArgument, Unauthenticated

logger = logging.getLogger(__name__)

ALGORITHMS = frozenset("RS256 RS384 RS512 PS256 PS384 PS512 ES256 ES384 ES512 EdDSA".split())
"""Signatures by a key that only the provider has; a shared secret is none."""
FRESH_SECONDS = 3600.0
LEAST_SECONDS = 30.0
"""Between two looks at a provider's keys, whatever key ids tokens claim."""
FETCH_SECONDS = 5.0
MOST_BYTES = 1_000_000
SKEW_SECONDS = 30
EMAIL = re.compile(r"[^@\s:/]{1,64}@[A-Za-z0-9.-]{1,190}")
SUBJECT = re.compile(r"[!-~]{1,100}")


@dataclass(frozen=True)
class Issuer:
    """A provider as it is configured. `jwks` is an `https` address or a file."""

    issuer: str
    audience: str
    jwks: str
    algorithms: tuple[str, ...] = ("RS256",)


@dataclass(frozen=True)
class User:
    """Whom a token names: `kind` and `name` make a member of policies."""

    kind: str
    name: str
    expiry: float


class Provider:
    """One issuer and its keys, fetched when first needed. Raises InvalidArgument for a setting that is not safe."""

    def __init__(self, issuer: Issuer) -> None:
        wrong = sorted(set(issuer.algorithms) - ALGORITHMS)
        if wrong or not issuer.algorithms:
            raise InvalidArgument(
                f"oidc_issuers: {issuer.issuer} allows {', '.join(wrong) or 'no algorithm'}; use some of "
                + ", ".join(sorted(ALGORITHMS))
            )
        if not issuer.issuer or not issuer.audience:
            raise InvalidArgument("oidc_issuers: issuer and audience must be given, or any token would do")
        address = urlsplit(issuer.jwks)
        if address.scheme and address.scheme != "https" and address.hostname not in ("127.0.0.1", "localhost", "::1"):
            raise InvalidArgument(f"oidc_issuers: {issuer.jwks} is not https; its keys could be anybody's")
        self.issuer = issuer
        self._keys: Mapping[str, Any] = {}
        self._looked = float("-inf")
        self._lock = threading.Lock()

    def verify(self, token: str, key_id: str) -> User:
        """Raises Unauthenticated."""
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
            raise Unauthenticated(f"the token of {self.issuer.issuer} is not valid: {error}") from None
        if isinstance(claims["aud"], list) and len(claims["aud"]) > 1 and claims.get("azp") != self.issuer.audience:
            raise Unauthenticated("the token is for several audiences and was not given to this one")
        return self._user(claims)

    def _user(self, claims: Mapping[str, Any]) -> User:
        expiry, email = float(claims["exp"]), claims.get("email")
        if claims.get("email_verified") is True and isinstance(email, str) and EMAIL.fullmatch(email):
            return User("user", email.lower(), expiry)
        subject = claims["sub"]
        if not isinstance(subject, str) or not SUBJECT.fullmatch(subject):
            raise Unauthenticated("the token names no subject that a policy could name")
        place = self.issuer.issuer.partition("://")[2].rstrip("/")
        return User("principal", f"//{place}/subject/{subject}", expiry)

    def _key(self, key_id: str) -> Any:
        with self._lock:
            age = time.monotonic() - self._looked
            if age > FRESH_SECONDS or (key_id not in self._keys and age > LEAST_SECONDS):
                self._looked = time.monotonic()
                self._keys = self._load() or self._keys
        if key_id not in self._keys:
            raise Unauthenticated(f"{self.issuer.issuer} publishes no key with the id of the token's")
        return self._keys[key_id]

    def _load(self) -> dict[str, Any]:
        """The provider's keys by id; empty when it cannot be reached, which is logged."""
        try:
            found = orjson.loads(_read(self.issuer.jwks))
            rows = [row for row in found["keys"] if row.get("use", "sig") == "sig" and row.get("kty") != "oct"]
            return {str(row.get("kid", "")): jwt.PyJWK(row).key for row in rows}
        except (OSError, httpx.HTTPError, ValueError, KeyError, TypeError, AttributeError, jwt.PyJWTError) as error:
            logger.warning("keys of provider not read", extra={"issuer": self.issuer.issuer, "reason": str(error)})
            return {}


class Providers:
    """The configured providers, by issuer."""

    def __init__(self, issuers: Iterable[Issuer] = ()) -> None:
        self._by_issuer = {one.issuer: Provider(one) for one in issuers}

    def __contains__(self, issuer: object) -> bool:
        return issuer in self._by_issuer

    def of(self, token: str) -> Provider | None:
        """The provider that a token says it is from; nothing in it is believed yet."""
        if not self._by_issuer:
            return None
        try:
            claims = jwt.decode(token, options={"verify_signature": False})
        except (jwt.PyJWTError, ValueError):
            return None
        issuer = claims.get("iss")
        return self._by_issuer.get(issuer) if isinstance(issuer, str) else None


def _read(place: str) -> bytes:
    if not urlsplit(place).scheme:
        return Path(place).read_bytes()
    with httpx.stream("GET", place, timeout=FETCH_SECONDS, follow_redirects=False) as answer:
        answer.raise_for_status()
        content = b""
        for chunk in answer.iter_bytes():
            content += chunk
            if len(content) > MOST_BYTES:
                raise ValueError(f"more than {MOST_BYTES} bytes")
        return content
