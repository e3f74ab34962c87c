"""From method and raw path to a route. Ids are percent-decoded one path segment at a time, so `%2F` stays inside its
id.

A template segment is a literal, `{name}` for one segment, or `{name=**}` for all that follow; the last may end in
`:verb`. A leading `/{api}/` stands for every API version. Matching descends a tree: a few lookups for any number of
routes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from starlette.requests import Request
from starlette.types import ASGIApp

from sarto.errors import InvalidArgument, MethodNotAllowed, NotFound, SartoError

API_VERSIONS = ("v1", "v1beta1")
MIXIN_PREFIXES = ("ui",)
"""Prefixes of operations and locations in the generated REST client, without a version."""

LOCATION = "/{api}/projects/{project}/locations/{location}"
JOB = f"{LOCATION}/tuningJobs/{{job}}"
ENDPOINT = f"{LOCATION}/endpoints/{{endpoint}}"
MODEL = f"{LOCATION}/models/{{model}}"
PUBLISHER_MODEL = f"{LOCATION}/publishers/{{publisher}}/models/{{model}}"
PAGE = ("page_size", "page_token")
LIST = (*PAGE, "filter", "order_by", "read_mask")
"""Paths and query parameters that route tables share. `/{api}/` is /v1/ and /v1beta1/."""
PUBLIC = "public"
"""Permission of a route without authentication."""
SIGNED_IN = "signed-in"
"""Permission of a route for any valid token; its response has only resources that the caller may see."""

OF_KEY = "/openai/"
"""Paths whose project comes from an API key."""
OPEN_BYTES, FORM_BYTES = 64 * 1024, 1 << 20
"""Most bytes of a body without authorisation, and of one without a prompt."""
PROMPT_BYTES = 1 << 62
"""Limit of bodies with prompts: that of the setting max_body_bytes."""

Handler = Callable[[Request], Awaitable[ASGIApp]]


@dataclass(frozen=True)
class Route:
    """One URL of the service. `permission` is checked by control before it acts. `request` and `response` are messages
    (see `openapi`), `query` the parameters (snake_case; None: the handler checks them)."""

    method: str
    path: str
    handler: Handler
    permission: str
    summary: str
    request: Any = None
    response: Any = None
    query: tuple[str, ...] | None = ()
    errors: str = "Error"
    """Form of the handler's errors (see `openapi`); errors before the handler have that of `refusal`."""
    refusal: Callable[[SartoError], ASGIApp] | None = None
    """The response for an error before the handler; None: google.rpc.Status."""
    body_bytes: int = 0
    """Most bytes of its body; 0: 64 KiB if no right is checked before it is read, else 1 MiB."""

    @property
    def asks_first(self) -> bool:
        """Whether a right is checked before the body is read: in the project of the path or of the caller's API key.
        For any other path it is checked anywhere, and only if the body may be long."""
        if self.permission in (PUBLIC, SIGNED_IN):
            return False
        has_project = "{project}" in self.path or "{bucket}" in self.path or self.path.startswith(OF_KEY)
        return has_project or self.body_bytes > 0

    @property
    def most_body_bytes(self) -> int:
        return self.body_bytes or (FORM_BYTES if self.asks_first else OPEN_BYTES)

    @property
    def resource(self) -> str:
        """The template of the path's resource: no version, no verb."""
        return self.path.removeprefix("/{api}/").partition(":")[0]

    def paths(self) -> list[str]:
        """The path under each of its versions."""
        if not self.path.startswith("/{api}/"):
            return [self.path]
        is_mixin = "/operations" in self.path or self.path.endswith(("/locations", "/locations/{location}"))
        prefixes = API_VERSIONS + (MIXIN_PREFIXES if is_mixin else ())
        return [f"/{prefix}/{self.path.removeprefix('/{api}/')}" for prefix in prefixes]


@dataclass
class _Node:
    literals: dict[str, _Node] = field(default_factory=dict)
    wildcard: _Node | None = None
    verbs: dict[str, dict[str, tuple[Route, tuple[str, ...]]]] = field(default_factory=dict)
    rest: dict[str, tuple[Route, tuple[str, ...]]] = field(default_factory=dict)

    def child(self, segment: str) -> _Node | None:
        return self.literals.get(segment) or self.wildcard


class Router:
    def __init__(self, routes: Iterable[Route]) -> None:
        self._root = _Node()
        for route in routes:
            for path in route.paths():
                self._add(path, route)

    def find(self, method: str, raw_path: bytes) -> tuple[Route, dict[str, str]]:
        """The route and its path values. Raises NotFound, MethodNotAllowed, InvalidArgument (not UTF-8)."""
        segments = _segments(raw_path)
        values: list[str] = []
        node, rest = self._root, None
        for position, segment in enumerate(segments):
            if node.rest:
                rest = (node.rest, [*values, "/".join(segments[position:])])
            if position == len(segments) - 1:
                match = self._last(node, segment, values)
                if match is not None:
                    return _by_method(match[0], method, match[1])
                break
            step = node.literals.get(segment)
            if step is None:
                step = node.wildcard
                values.append(segment)
            if step is None:
                break
            node = step
        if rest is not None:
            return _by_method(rest[0], method, rest[1])
        raise NotFound(f"There is no method at this path: {method} /{'/'.join(segments)}.")

    def _last(self, node: _Node, segment: str, values: list[str]) -> Any:
        head, colon, verb = segment.rpartition(":")
        if colon:
            child = node.child(head)
            if child is not None and verb in child.verbs:
                return child.verbs[verb], values if head in node.literals else [*values, head]
        child = node.child(segment) if segment else node.literals.get("")
        if child is None or "" not in child.verbs:
            return None
        return child.verbs[""], values if segment in node.literals else [*values, segment]

    def _add(self, path: str, route: Route) -> None:
        names: list[str] = []
        node = self._root
        segments = path[1:].split("/")
        for segment in segments[:-1]:
            node = self._step(node, segment, names)
        last, _, verb = segments[-1].partition(":")
        if last.endswith("=**}"):
            names.append(last[1:-4])
            table = node.rest
        else:
            table = self._step(node, last, names).verbs.setdefault(verb, {})
        assert route.method not in table, f"two routes for {route.method} {path}"
        table[route.method] = (route, tuple(names))

    def _step(self, node: _Node, segment: str, names: list[str]) -> _Node:
        if segment.startswith("{"):
            names.append(segment[1:-1])
            if node.wildcard is None:
                node.wildcard = _Node()
            return node.wildcard
        return node.literals.setdefault(segment, _Node())


def _segments(raw_path: bytes) -> list[str]:
    """Decoded segments, without the Google host name that some clients prepend."""
    try:
        segments = raw_path.decode("utf-8").lstrip("/").split("/")
        if b"%" in raw_path:
            segments = [unquote(segment, errors="strict") for segment in segments]
    except UnicodeDecodeError:
        raise InvalidArgument("The path of the URL is not valid UTF-8.") from None
    return segments[1:] if segments[0].endswith(".googleapis.com") else segments


def _by_method(
    table: dict[str, tuple[Route, tuple[str, ...]]], method: str, values: list[str]
) -> tuple[Route, dict[str, str]]:
    route = table.get(method) or (table.get("GET") if method == "HEAD" else None)
    if route is None:
        raise MethodNotAllowed(f"This path has no {method}; it has {', '.join(sorted(table))}.", table)
    return route[0], dict(zip(route[1], values, strict=True))
