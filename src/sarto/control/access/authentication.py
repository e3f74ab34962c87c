"""From a bearer token to a Principal, and the grants that issue tokens.

Four kinds of bearer are accepted: our access token (HS256 under the home's secret), a JWT signed by a service account
(RS256 under one of our keys), an ID token of a configured provider, and an API key. The kind of key decides the
algorithm; the token does not.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import jwt
import sqlalchemy as sa
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from sarto.control.access import account_store, api_keys
from sarto.control.access.oidc import Providers
from sarto.control.access.principal import Principal
from sarto.control.access.projects import AGENT_DOMAIN
from sarto.errors import InvalidArgument, Unauthenticated
from sarto.storage.database import tables
from sarto.storage.database.database import Database

JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"
TOKEN_EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
ACCESS_TOKEN_TYPE = "urn:ietf:params:oauth:token-type:access_token"
GOOGLE_TOKEN_URLS = frozenset(
    f"https://{place}"
    for place in (
        "oauth2.googleapis.com/token",
        "www.googleapis.com/oauth2/v4/token",
        "accounts.google.com/o/oauth2/token",
    )
)
"""Audiences that clients sign for any `token_uri`; accepted because the signing key is one of this home."""
TOKEN_PATHS = frozenset(("/token", "/sts/token"))
SKEW_SECONDS = 30
MAX_LIFE_SECONDS = 3600
REMEMBER_SECONDS = 1.0
"""Longest time for which a token outlives a key or an account that another server disabled."""
MAX_TOKEN_CHARACTERS = 8192
WHO = ("sub", "key", "account", "kind", "issuer")
"""Claims of an access token that identify its principal."""
MAX_REMEMBERED = 10_000


class InvalidGrant(InvalidArgument):
    """An OAuth error; `code` is that of RFC 6749."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.oauth_code = code


class Authenticator:
    """Verifies and issues tokens for the server at `address`. Thread-safe."""

    def __init__(
        self, database: Database, address: str, token_seconds: int, providers: Providers | None = None
    ) -> None:
        self.database = database
        self._providers = providers or Providers()
        self.token_seconds = token_seconds
        self.addresses = _aliases(address)
        self._secret = _secret(database, "access_token", lambda: secrets.token_bytes(32))
        self._identity = _secret(database, "identity_key", _new_identity_key)
        self._remembered: dict[bytes, tuple[Principal, float, float, int]] = {}
        self._lock = threading.Lock()

    def accept(self, address: str) -> None:
        """Accept tokens for another address of this server too; keys and tokens keep the first."""
        self.addresses = tuple(dict.fromkeys((*self.addresses, *_aliases(address))))

    def remembered(self, bearer: str) -> Principal | None:
        """The principal of a token that was verified within the last second, without cryptography and database."""
        remembered = self._remembered.get(_digest(bearer))
        if remembered is None or time.monotonic() >= remembered[1] or time.time() >= remembered[2]:
            return None
        if remembered[3] != self.database.rights_changes:
            return None
        return remembered[0]

    def authenticate(self, bearer: str) -> Principal:
        """Raises Unauthenticated with the reason."""
        principal = self.remembered(bearer)
        if principal is None:
            changes = self.database.rights_changes
            principal, expiry = self._verify(bearer)
            with self._lock:
                while len(self._remembered) >= MAX_REMEMBERED:
                    del self._remembered[next(iter(self._remembered))]
                self._remembered[_digest(bearer)] = (principal, time.monotonic() + REMEMBER_SECONDS, expiry, changes)
        return principal

    def grant(self, form: Mapping[str, str]) -> dict[str, Any]:
        """The response of the token endpoint: RFC 7523. Raises InvalidGrant."""
        if form.get("grant_type") != JWT_BEARER:
            raise InvalidGrant("unsupported_grant_type", f"grant_type must be {JWT_BEARER}")
        if not form.get("assertion"):
            raise InvalidGrant("invalid_request", "assertion is missing")
        try:
            claims, key = self._self_signed(form["assertion"])
            if claims.get("aud") not in GOOGLE_TOKEN_URLS | {f"{a}/token" for a in self.addresses}:
                raise Unauthenticated("The audience of the assertion is not this token endpoint.")
        except Unauthenticated as error:
            raise InvalidGrant("invalid_grant", error.message) from None
        answer = self.issue(key)
        if claims.get("target_audience"):
            answer["id_token"] = self.identity_token(key.account, str(claims["target_audience"]))
        return answer

    def exchange(self, form: Mapping[str, str]) -> dict[str, Any]:
        """RFC 8693 for external-account clients: exchanges a bearer token of ours, or an ID token of a configured
        provider, for an access token that does not outlive it."""
        if form.get("grant_type") != TOKEN_EXCHANGE:
            raise InvalidGrant("unsupported_grant_type", f"grant_type must be {TOKEN_EXCHANGE}")
        if not form.get("subject_token"):
            raise InvalidGrant("invalid_request", "subject_token is missing")
        try:
            who, until = self._exchanged(form["subject_token"].strip())
        except Unauthenticated as error:
            raise InvalidGrant("invalid_grant", f"subject_token: {error.message}") from None
        return self._issued(who, until - time.time()) | {"issued_token_type": ACCESS_TOKEN_TYPE}

    def issue(self, key: account_store.AccountKey) -> dict[str, Any]:
        """An access token for the key's account, valid while the key is active."""
        return self._issued({"sub": key.account.email, "key": key.id}, self.token_seconds)

    def issue_for(self, account: account_store.ServiceAccount, seconds: float) -> dict[str, Any]:
        """An access token for the account, valid while the account is enabled, independent of its keys."""
        return self._issued({"sub": account.email, "account": account.unique_id}, seconds)

    def identity_token(self, account: account_store.ServiceAccount, audience: str) -> str:
        """An ID token of the account for `audience`. This service does not accept it as an access token."""
        now = int(time.time())
        claims = {
            "iss": self.addresses[0],
            "aud": audience,
            "azp": account.email,
            "sub": account.unique_id,
            "email": account.email,
            "email_verified": True,
            "iat": now,
            "exp": now + self.token_seconds,
        }
        return jwt.encode(claims, self._identity, algorithm="RS256", headers={"kid": _key_name(self._identity)})

    def public_keys(self) -> dict[str, Any]:
        """The JSON Web Key Set for identity tokens."""
        public = serialization.load_pem_private_key(self._identity, None).public_key()
        assert isinstance(public, rsa.RSAPublicKey)
        key = jwt.algorithms.RSAAlgorithm.to_jwk(public, as_dict=True)
        return {"keys": [key | {"kid": _key_name(self._identity), "use": "sig", "alg": "RS256"}]}

    def _issued(self, who: Mapping[str, str], seconds: float) -> dict[str, Any]:
        now = int(time.time())
        expiry = now + int(max(0.0, min(seconds, self.token_seconds)))
        token = jwt.encode({**who, "iat": now, "exp": expiry}, self._secret, "HS256", headers={"kid": "access"})
        return {"access_token": token, "token_type": "Bearer", "expires_in": expiry - now}

    def _exchanged(self, subject: str) -> tuple[dict[str, str], float]:
        """The principal of a token as claims of an access token, and its expiry. Raises Unauthenticated."""
        key_id = str(_unverified_header(subject).get("kid", ""))
        if key_id == "access":
            claims = self._access(subject)
            self._bearer_of(claims)
            return {name: claims[name] for name in WHO if name in claims}, float(claims["exp"])
        if (provider := self._providers.of(subject)) is not None:
            user = provider.verify(subject, key_id)
            return {"sub": user.name, "kind": user.kind, "issuer": provider.issuer.issuer}, user.expiry
        claims = self._bearer_claims(subject)
        return {"sub": self._active_key(key_id).account.email, "key": key_id}, float(claims["exp"])

    def _verify(self, bearer: str) -> tuple[Principal, float]:
        if bearer.startswith(api_keys.PREFIX):
            return self._of_api_key(bearer)
        key_id = str(_unverified_header(bearer).get("kid", ""))
        if key_id == "access":
            claims = self._access(bearer)
            return self._bearer_of(claims), float(claims["exp"])
        if (provider := self._providers.of(bearer)) is not None:
            user = provider.verify(bearer, key_id)
            return Principal(user.name, "", user.kind), user.expiry
        claims = self._bearer_claims(bearer)
        return _principal(self._active_key(key_id).account), float(claims["exp"])

    def _of_api_key(self, bearer: str) -> tuple[Principal, float]:
        found = api_keys.find(self.database, bearer)
        if found is None:
            raise Unauthenticated("The API key is unknown, revoked or expired, or its account is disabled.")
        return replace(_principal(found.account), key_project=found.project), found.expiry

    def _bearer_of(self, claims: Mapping[str, Any]) -> Principal:
        """The principal of an access token: a key's account, an account independent of keys, or a provider's user.
        Raises Unauthenticated for one that was disabled, deleted or removed from the settings since."""
        if "key" in claims:
            return _principal(self._active_key(str(claims["key"])).account)
        if "account" in claims:
            account = account_store.find_enabled(self.database, str(claims["account"]))
            if account is None:
                raise Unauthenticated("The account of the token is deleted or disabled.")
            return _principal(account)
        kind, name = str(claims["kind"]), str(claims["sub"])
        if not self._providers.still_names(claims.get("issuer"), kind, name):
            raise Unauthenticated("The provider of the token's user is not configured for that user any more.")
        return Principal(name, "", kind)

    def _access(self, token: str) -> dict[str, Any]:
        try:
            required = ["sub", "iat", "exp"]
            return jwt.decode(token, self._secret, algorithms=["HS256"], options={"require": required})
        except jwt.PyJWTError as error:
            raise Unauthenticated(f"The access token is not valid: {error}") from None

    def _bearer_claims(self, token: str) -> dict[str, Any]:
        """Claims of a self-signed JWT as bearer: its audience is a Google service or this server, or it has a scope
        instead."""
        claims, _ = self._self_signed(token)
        audience, scope = claims.get("aud"), claims.get("scope")
        if audience is None and isinstance(scope, str) and scope:
            return claims
        if not isinstance(audience, str) or not self._is_ours(audience):
            raise Unauthenticated("The audience of the self-signed token is not this service.")
        return claims

    def _is_ours(self, audience: str) -> bool:
        parts = urlsplit(audience)
        host = parts.hostname or ""
        if audience in GOOGLE_TOKEN_URLS or parts.path in TOKEN_PATHS:  # an assertion for a token is not a bearer
            return False
        return f"{parts.scheme}://{parts.netloc}" in self.addresses or (
            parts.scheme == "https" and host.endswith(".googleapis.com")
        )

    def _self_signed(self, token: str) -> tuple[dict[str, Any], account_store.AccountKey]:
        key = self._active_key(str(_unverified_header(token).get("kid", "")))
        try:
            options: Any = {"require": ["iss", "iat", "exp"], "verify_aud": False}
            claims = jwt.decode(token, key.public_key, algorithms=["RS256"], leeway=SKEW_SECONDS, options=options)
        except jwt.PyJWTError as error:
            raise Unauthenticated(f"The signed token is not valid: {error}") from None
        if claims["iss"] not in key.emails or claims.get("sub", claims["iss"]) != claims["iss"]:
            raise Unauthenticated("The issuer of the signed token is not the account of its key.")
        if claims["exp"] - claims["iat"] > MAX_LIFE_SECONDS:
            raise Unauthenticated(f"The signed token is valid for longer than {MAX_LIFE_SECONDS} seconds.")
        return claims, key

    def _active_key(self, key_id: str) -> account_store.AccountKey:
        key = account_store.find_key(self.database, key_id) if key_id else None
        if key is None or not key.is_active:
            raise Unauthenticated("The key of the token is unknown or disabled.")
        return key


def _principal(account: account_store.ServiceAccount) -> Principal:
    """Raises Unauthenticated for an account with a service agent's address, which projects could create before."""
    if account.email.endswith(f"@{AGENT_DOMAIN}"):
        raise Unauthenticated("The account has the address of a service agent, with which nobody can sign in.")
    return Principal(account.email, account.project)


def _aliases(address: str) -> tuple[str, ...]:
    """The address, and its other spelling if it is this machine's own."""
    for name, other in (("//127.0.0.1", "//localhost"), ("//localhost", "//127.0.0.1")):
        if name in address:
            return (address, address.replace(name, other))
    return (address,)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def _unverified_header(token: str) -> dict[str, Any]:
    """The header, only for the choice of the key. Raises Unauthenticated."""
    if len(token) > MAX_TOKEN_CHARACTERS:
        raise Unauthenticated("The token is too long.")
    try:
        return jwt.get_unverified_header(token)
    except (jwt.PyJWTError, UnicodeError):
        raise Unauthenticated("The bearer is not a token of this server.") from None


def _key_name(pem: bytes) -> str:
    return hashlib.sha256(pem).hexdigest()[:16]


def _new_identity_key() -> bytes:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _secret(database: Database, name: str, make: Any) -> bytes:
    """A secret of the home, created at the first call."""
    table = tables.secret
    with database.transaction() as connection:
        row = connection.execute(sa.select(table.c.value).where(table.c.name == name)).first()
        if row is not None:
            return bytes(row.value)
        value: bytes = make()
        connection.execute(table.insert().values(name=name, value=value))
        return value
