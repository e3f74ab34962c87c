"""A client of the API over HTTP: the server's address, the caller, requests, streams, uploads of local files.

Prints nothing.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import jwt

from sarto.errors import BAD_REQUEST, FailedPrecondition, InvalidArgument, SartoError, Unauthenticated, Unavailable

EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
GRANT = "urn:ietf:params:oauth:grant-type:jwt-bearer"
SCOPE = "https://www.googleapis.com/auth/cloud-platform"
REFRESH_SECONDS = 60
UPLOAD_BYTES = 1 << 18
MAPPING = "sarto-mapping"
"""The key of an object's metadata that names the mapping it was made with."""


class ApiError(SartoError):
    """An error response of the server; `status` and `http_status` are the server's."""

    def __init__(self, http_status: int, status: str, message: str, details: list[dict[str, Any]]) -> None:
        super().__init__(message, details)
        self.answered_status = status
        self.answered_http_status = http_status

    @property
    def violations(self) -> list[tuple[str, str]]:
        """(field, description) of every fault in the request."""
        rows = [
            row for detail in self.details if detail.get("@type") == BAD_REQUEST for row in detail["fieldViolations"]
        ]
        return [(row.get("field", ""), row.get("description", "")) for row in rows]


@dataclass(frozen=True)
class Key:
    """A service account key file in Google's format."""

    email: str
    key_id: str
    private_key: str
    token_uri: str
    project: str

    @classmethod
    def read(cls, path: Path) -> Key:
        """Read a key file. Raises FailedPrecondition when there is no file and InvalidArgument when it is not a key."""
        raw = _read_credentials(path)
        try:
            return cls(
                raw["client_email"], raw["private_key_id"], raw["private_key"], raw["token_uri"], raw["project_id"]
            )
        except (KeyError, TypeError):
            raise InvalidArgument(f"{path} is not a service account key file.") from None

    def assertion(self, now: int) -> str:
        claims = {"iss": self.email, "sub": self.email, "aud": self.token_uri, "scope": SCOPE}
        claims |= {"iat": now, "exp": now + 3600}  # type: ignore[dict-item]
        try:
            return jwt.encode(claims, self.private_key, algorithm="RS256", headers={"kid": self.key_id})
        except (jwt.PyJWTError, ValueError, TypeError):
            raise InvalidArgument(f"The private key of {self.email} in the key file is damaged.") from None

    def form(self) -> dict[str, str]:
        """The request of RFC 7523."""
        return {"grant_type": GRANT, "assertion": self.assertion(int(time.time()))}


def _admin_key() -> Path:
    from sarto.settings import default_home  # slow to import, and needed without a key file only

    return default_home() / "credentials" / "admin.json"


def _read_credentials(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FailedPrecondition(
            f"The key file {path} cannot be read ({error.strerror}). A first `sarto serve` writes one; "
            "set GOOGLE_APPLICATION_CREDENTIALS to use another."
        ) from None
    except ValueError:
        raise InvalidArgument(f"{path} is not a service account key file.") from None
    return raw if isinstance(raw, dict) else {}


@dataclass(frozen=True)
class ExternalAccount:
    """A file of Google's form `external_account`: a token of an identity provider, from a file or a URL."""

    token_url: str
    subject: str
    """The provider's token."""
    subject_type: str
    audience: str

    @classmethod
    def read(cls, raw: dict[str, Any]) -> ExternalAccount:
        """Raises InvalidArgument for a source that is neither a file nor a URL, or cannot be read."""
        source = raw["credential_source"]
        try:
            if "file" in source:
                text = Path(source["file"]).read_text(encoding="utf-8")
            else:
                answer = httpx.get(source["url"], headers=source.get("headers"), timeout=30)
                text = answer.raise_for_status().text
            form = source.get("format", {})
            subject = json.loads(text)[form["subject_token_field_name"]] if form.get("type") == "json" else text
            return cls(raw["token_url"], str(subject).strip(), raw["subject_token_type"], raw.get("audience", ""))
        except (OSError, ValueError, httpx.HTTPError) as error:
            raise InvalidArgument(f"credential_source: the provider's token cannot be read ({error}).") from None

    def form(self) -> dict[str, str]:
        """The request of RFC 8693."""
        return {
            "grant_type": EXCHANGE,
            "audience": self.audience,
            "scope": SCOPE,
            "requested_token_type": "urn:ietf:params:oauth:token-type:access_token",
            "subject_token": self.subject,
            "subject_token_type": self.subject_type,
        }


@dataclass(frozen=True)
class Connection:
    """The server and the caller. `project` may be empty: then it is the key's. `given_token`: an access token that is
    used in place of the key file. `key_file` None: the administrator's in the home."""

    url: str
    key_file: Path | None
    project: str
    location: str
    given_token: str = ""


class Client:
    """Requests to one server. Close it, or use it in a `with` block."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.http = httpx.Client(base_url=connection.url.rstrip("/"), timeout=httpx.Timeout(120, connect=10))
        self._token = ""
        self._token_until = 0.0

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    @cached_property
    def credentials(self) -> Key | ExternalAccount:
        """Those of the file. Raises FailedPrecondition for those of another server, before anything is sent."""
        path = self.connection.key_file or _admin_key()
        raw = _read_credentials(path)
        is_external = raw.get("type") == "external_account"
        issuer = raw.get("token_url" if is_external else "token_uri")
        # Before an external account is read, since its source can be a URL.
        if isinstance(issuer, str) and _origin(issuer) != _origin(self.connection.url):
            raise FailedPrecondition(
                f"{path} is a key of {issuer}, not of the server {self.connection.url}; nothing was sent. Give the key"
                " of this server with --credentials or GOOGLE_APPLICATION_CREDENTIALS, or the key's server with --url"
                " or SARTO_URL."
            )
        try:
            return ExternalAccount.read(raw) if is_external else Key.read(path)
        except (KeyError, TypeError):
            raise InvalidArgument(f"{path} is not an external account file.") from None

    @property
    def account(self) -> str:
        """The email of the key file's account. Raises InvalidArgument for a caller without one."""
        if self.connection.given_token or not isinstance(self.credentials, Key):
            raise InvalidArgument("Name the account; a token has none.")
        return self.credentials.email

    @property
    def project(self) -> str:
        if self.connection.project:
            return self.connection.project
        if self.connection.given_token or not isinstance(self.credentials, Key):
            raise InvalidArgument("Give the project with --project or GOOGLE_CLOUD_PROJECT; a token has none.")
        return self.credentials.project

    @property
    def parent(self) -> str:
        """`projects/P/locations/L` of this connection."""
        return f"projects/{self.project}/locations/{self.connection.location}"

    def token(self) -> str:
        """An access token from the server's token endpoint; renewed shortly before it expires."""
        if self.connection.given_token:
            return self.connection.given_token
        if time.monotonic() < self._token_until:
            return self._token
        credentials = self.credentials
        url = credentials.token_uri if isinstance(credentials, Key) else credentials.token_url
        who = credentials.email if isinstance(credentials, Key) else "the external account"
        try:
            answer = httpx.post(url, data=credentials.form(), timeout=30)
        except httpx.TransportError as error:
            raise _unreachable(url, error) from None
        if answer.is_error:
            raise Unauthenticated(f"{url} gave no token for {who}: {_reason(answer)}")
        body = answer.json()
        self._token = str(body["access_token"])
        self._token_until = time.monotonic() + float(body["expires_in"]) - REFRESH_SECONDS
        return self._token

    def get(self, path: str, **params: str | int) -> Any:
        return self.request("GET", path, params=params)

    def post(self, path: str, body: Mapping[str, Any] | None = None, **params: str | int) -> Any:
        return self.request("POST", path, params=params, json=dict(body or {}))

    def delete(self, path: str) -> Any:
        return self.request("DELETE", path)

    def text(self, path: str, **params: str | int) -> str:
        """A response that is not JSON."""
        return self._answer("GET", path, params=params).text

    def request(self, method: str, path: str, **how: Any) -> Any:
        """The response's JSON."""
        answer = self._answer(method, path, **how)
        return answer.json() if answer.content else {}

    def _answer(self, method: str, path: str, **how: Any) -> httpx.Response:
        """The response. Raises ApiError with the server's message, Unavailable when there is no response."""
        try:
            answer = self.http.request(method, path, headers=self._headers(how.pop("headers", None)), **how)
        except httpx.TransportError as error:
            raise _unreachable(self.connection.url, error) from None
        if answer.is_error:
            raise _api_error(answer)
        return answer

    def pages(self, path: str, key: str, limit: int, **params: str) -> list[dict[str, Any]]:
        """Rows of a list method, page by page, `limit` at most."""
        rows: list[dict[str, Any]] = []
        page_token = ""
        while len(rows) < limit:
            query: dict[str, str | int] = {"pageSize": min(100, limit - len(rows)), **params}
            if page_token:
                query["pageToken"] = page_token
            page = self.get(path, **query)
            rows += page.get(key, [])
            page_token = page.get("nextPageToken", "")
            if not page_token:
                break
        return rows[:limit]

    def events(self, path: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Server-sent events of a streaming method, as they arrive. Closing the iterator ends the request."""
        try:
            with self.http.stream(
                "POST", path, headers=self._headers(), json=dict(body), params={"alt": "sse"}
            ) as answer:
                if answer.is_error:
                    answer.read()
                    raise _api_error(answer)
                for line in answer.iter_lines():
                    if line.startswith("data:"):
                        event: dict[str, Any] = json.loads(line[5:])
                        if "error" in event:
                            raise _error_of(event["error"], answer.status_code)
                        yield event
        except httpx.TransportError as error:
            raise _unreachable(self.connection.url, error) from None

    def event_stream(self, path: str, **params: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Kind and data of the server's events as they occur; ends when the server ends the stream."""
        headers = self._headers({"Accept": "text/event-stream"})
        try:
            with self.http.stream("GET", path, headers=headers, params=params) as answer:
                if answer.is_error:
                    answer.read()
                    raise _api_error(answer)
                kind = ""
                for line in answer.iter_lines():
                    if line.startswith("event: "):
                        kind = line[7:]
                    elif line.startswith("data: "):
                        yield kind, json.loads(line[6:])
        except httpx.TransportError as error:
            raise _unreachable(self.connection.url, error) from None

    def dataset(self, file: str, kms_key: str = "", *, mapping: bytes = b"") -> str:
        """The `gs://` URI of a dataset: the argument, or that of the local file, which is uploaded unless it exists.
        With a customer key the bucket is another one, encrypted under it. `mapping` is the record of a conversion: an
        object beside the file, whose name is in the file's metadata."""
        if file.startswith("gs://"):
            return file
        path = Path(file)
        try:
            with path.open("rb") as content:
                digest = hashlib.file_digest(content, "sha256").hexdigest()
        except OSError as error:
            raise InvalidArgument(f"{file} cannot be read: {error.strerror}") from None
        bucket, name = f"{self.project}-datasets", f"{digest[:16]}/{path.name}"
        body: dict[str, Any] = {"name": bucket}
        if kms_key:
            body["name"] = bucket = f"{bucket}-{hashlib.sha256(kms_key.encode()).hexdigest()[:16]}"
            body |= {"location": self.connection.location, "encryption": {"defaultKmsKeyName": kms_key}}
        # Lists objects, since roles/storage.objectAdmin has no right to read the bucket itself.
        if self._is_missing(f"/storage/v1/b/{bucket}/o?maxResults=1"):
            self._create_bucket(bucket, body)
        beside = f"{name.removesuffix('.jsonl')}.mapping.json" if mapping else ""
        if beside and self._is_missing(_object(bucket, beside)):
            self._upload(bucket, beside, [mapping], "application/json")
        if self._is_missing(_object(bucket, name)):
            with path.open("rb") as content:
                named = {MAPPING: f"gs://{bucket}/{beside}"} if beside else {}
                self._upload(bucket, name, iter(partial(content.read, UPLOAD_BYTES), b""), "application/jsonl", named)
        return f"gs://{bucket}/{name}"

    def _create_bucket(self, bucket: str, body: dict[str, Any]) -> None:
        try:
            self.post("/storage/v1/b", body, project=self.project)
        except ApiError as error:
            if error.answered_http_status != 403:
                raise
            raise FailedPrecondition(
                f"The bucket {bucket} for local files does not exist, and you may not create buckets. Let an"
                f" administrator upload a file once (`sarto data check FILE --project {self.project}`), or name data"
                " in a bucket of yours: gs://…."
            ) from None

    def _upload(
        self, bucket: str, name: str, content: Iterable[bytes], kind: str, metadata: Mapping[str, str] | None = None
    ) -> None:
        """Store an object with its metadata in one request, which is streamed."""
        mark = secrets.token_hex(16)
        resource = json.dumps({"name": name, "contentType": kind, "metadata": dict(metadata or {})})
        head = (
            f"--{mark}\r\nContent-Type: application/json\r\n\r\n{resource}\r\n--{mark}\r\nContent-Type: {kind}\r\n\r\n"
        )
        self.request(
            "POST",
            f"/upload/storage/v1/b/{bucket}/o",
            params={"uploadType": "multipart"},
            headers={"Content-Type": f"multipart/related; boundary={mark}"},
            content=chain([head.encode()], content, [f"\r\n--{mark}--\r\n".encode()]),
        )

    def _is_missing(self, path: str) -> bool:
        try:
            self.get(path)
        except ApiError as error:
            if error.answered_http_status != 404:
                raise
            return True
        return False

    def _headers(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token()}", **(more or {})}


def _origin(url: str) -> tuple[str, str, int | None]:
    """Scheme, host and port; the names of this machine's loopback are one."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    return parts.scheme, "localhost" if host in ("127.0.0.1", "::1") else host, port


def _object(bucket: str, name: str) -> str:
    return f"/storage/v1/b/{bucket}/o/{quote(name, safe='')}"


def _unreachable(url: str, error: httpx.TransportError) -> Unavailable:
    return Unavailable(
        f"No Sarto server answers at {url} ({error}). Start one with `sarto serve`, or set SARTO_URL to where it runs."
    )


def _reason(answer: httpx.Response) -> str:
    try:
        body = answer.json()
        return str(body.get("error_description") or body["error"])
    except (ValueError, KeyError, AttributeError):
        return f"HTTP {answer.status_code}"


def _api_error(answer: httpx.Response) -> ApiError:
    try:
        body = answer.json()
        error = (body[0] if isinstance(body, list) else body)["error"]
    except (ValueError, KeyError, TypeError, IndexError):
        error = {
            "message": f"HTTP {answer.status_code} from {answer.url.path}: this is not a Sarto server, or an old one"
        }
    return _error_of(error, answer.status_code)


def _error_of(error: dict[str, Any], http_status: int) -> ApiError:
    details = [detail for detail in error.get("details", ()) if isinstance(detail, dict)]
    return ApiError(int(error.get("code", http_status)), error.get("status", ""), error.get("message", ""), details)
