"""OpenAPI 3.1 from the route table and the messages. A route without a message takes and returns JSON objects."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from pydantic.alias_generators import to_camel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue, models_json_schema

from sarto import __version__
from sarto.api.http.routing import PUBLIC, SIGNED_IN, Route
from sarto.schema.wire import Message

REF = "#/components/schemas/{model}"
INTEGERS = {"page_size"}
BOOLEANS = {"force"}
ANY_TYPE = "*/*"
"""Media type of a route that returns stored bytes, of any type."""
NOTHING = "nothing"
"""Response of a route that returns 204 without a body."""
ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "message", "status"],
            "properties": {
                "code": {"type": "integer", "description": "The HTTP status."},
                "message": {"type": "string"},
                "status": {"type": "string", "description": "The google.rpc code by name."},
                "details": {"type": "array", "items": {"type": "object"}},
            },
        }
    },
}

STORAGE_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "message", "errors"],
            "properties": {
                "code": {"type": "integer"},
                "message": {"type": "string"},
                "errors": {"type": "array", "items": {"type": "object", "required": ["message", "domain", "reason"]}},
            },
        }
    },
}
CHAT_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {"message": {"type": "string"}, "type": {"type": "string"}, "code": {"type": "string"}},
        }
    },
}
OAUTH_ERROR = {
    "type": "object",
    "required": ["error", "error_description"],
    "properties": {"error": {"type": "string"}, "error_description": {"type": "string"}},
}
ERRORS = {"Error": ERROR, "StorageError": STORAGE_ERROR, "ChatError": CHAT_ERROR, "OAuthError": OAUTH_ERROR}
XML_ERRORS = "XmlError"
"""Errors of the storage's XML routes: an `<Error>` element."""


class _MessageSchema(GenerateJsonSchema):
    """A generator that ignores the serializer by which messages omit empty fields: the schema is that of the fields."""

    def ser_schema(self, schema: Any) -> JsonSchemaValue | None:
        return None if schema["type"] == "function-wrap" else super().ser_schema(schema)

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def describe(routes: Iterable[Route]) -> dict[str, Any]:
    """The whole document. Paths are given under every API version."""
    routes = list(routes)
    messages = {kind for route in routes for kind in _kinds(route) if _is_message(kind)}
    _, schemas = models_json_schema(
        [(kind, "serialization") for kind in sorted(messages, key=lambda kind: kind.__name__)],
        ref_template=REF,
        schema_generator=_MessageSchema,
    )
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        for path in route.paths():
            if path.startswith("/ui/"):
                continue
            paths.setdefault(_template(path), {})[route.method.lower()] = _operation(route, path)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Sarto",
            "version": __version__,
            "description": "A self-hosted tuning service with the Vertex AI REST API.",
        },
        "security": [{"bearer": []}],
        "paths": paths,
        "components": {
            "schemas": schemas.get("$defs", {}) | ERRORS,
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(route: Route, path: str) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": _operation_id(route, path),
        "summary": route.summary,
        "tags": [_tag(route)],
        "parameters": [*_path_parameters(path), *_query_parameters(route)],
        "responses": {
            **_answer(route),
            "default": {"description": "An error.", "content": _error_content(route)},
        },
    }
    if route.permission == PUBLIC:
        operation["security"] = []
    elif route.permission != SIGNED_IN:
        operation["description"] = f"Needs the permission `{route.permission}`."
    if route.request is not None:
        operation["requestBody"] = {"required": True, "content": _content(route.request)}
    return operation


def _content(kind: Any) -> dict[str, Any]:
    """A message, a plain JSON schema, another media type by its name, or several of these."""
    if isinstance(kind, tuple):
        return {media: shape for one in kind for media, shape in _content(one).items()}
    if isinstance(kind, str):
        return {kind: {"schema": {}}}
    if _is_message(kind):
        return {"application/json": {"schema": _ref(kind.__name__)}}
    return {"application/json": {"schema": kind or {"type": "object"}}}


def _answer(route: Route) -> dict[str, Any]:
    if route.response == NOTHING:
        return {"204": {"description": "Done; there is nothing to say."}}
    return {"200": {"description": "The answer.", "content": _content(route.response)}}


def _error_content(route: Route) -> dict[str, Any]:
    if route.errors == XML_ERRORS:
        return {"application/json": {"schema": _ref("Error")}, "application/xml": {"schema": {}}}
    kinds = dict.fromkeys(("Error", route.errors))
    schema = _ref("Error") if len(kinds) == 1 else {"anyOf": [_ref(kind) for kind in kinds]}
    return {"application/json": {"schema": schema}}


def _path_parameters(path: str) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"{(\w+)(?:=\*\*)?}", path)
    ]


def _query_parameters(route: Route) -> list[dict[str, Any]]:
    parameters = []
    for name in route.query or ():
        kind = "integer" if name in INTEGERS else "boolean" if name in BOOLEANS else "string"
        schema = {"type": kind, "minimum": 0, "maximum": 999_999_999} if kind == "integer" else {"type": kind}
        parameters.append({"name": to_camel(name), "in": "query", "schema": schema})
    return parameters


def _operation_id(route: Route, path: str) -> str:
    words = path.replace("/:", "/slash:")  # of two spellings of one verb each has its own
    return "_".join([route.method.lower(), *re.findall(r"[A-Za-z0-9]+", words)])


def _template(path: str) -> str:
    return path.replace("=**}", "}")


def _tag(route: Route) -> str:
    return route.handler.__module__.rpartition(".")[2].replace("_", " ")


def _kinds(route: Route) -> list[Any]:
    return [
        kind for kinds in (route.request, route.response) for kind in (kinds if isinstance(kinds, tuple) else [kinds])
    ]


def _is_message(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Message)


def _ref(name: str) -> dict[str, str]:
    return {"$ref": REF.format(model=name)}
