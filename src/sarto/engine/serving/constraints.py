"""Answers that are valid by construction: schemas, enums and function calls as grammars over a model's tokens.

What a grammar allows next comes from llguidance; this file only turns requests into grammars and grammars into masks.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from llguidance import LLMatcher, LLTokenizer
from torch import Tensor

from sarto.errors import InvalidArgument
from sarto.schema.contents import lower_types
from sarto.schema.generation import GenerationConfig

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions  # lives in its type stub only

JSON_OPTIONS: JsonCompileOptions = {"whitespace_pattern": r"( |\n {0,32})"}
"""Whitespace in a JSON answer: none, one space, or a line break with indentation; never without end."""
DROPPED_KEYS = frozenset(["example", "propertyOrdering", "property_ordering", "title", "default", "nullable"])
"""Keys of Google's schema that say nothing about validity, or are read here."""
FORMATS = frozenset(["date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"])
COUNTS = frozenset(["minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"])


class GrammarTokens:
    """The vocabulary of one base as grammars see it. Made once; any thread may use it."""

    def __init__(self, folder: Path, vocabulary: int, end_ids: frozenset[int]) -> None:
        text = (folder / "tokenizer.json").read_text(encoding="utf-8")
        self.tokenizer = LLTokenizer(text, n_vocab=vocabulary, eos_token=sorted(end_ids))


class Grammar:
    """A grammar in llguidance's dialect of Lark, compiled for one vocabulary. Raises InvalidArgument, naming the field,
    where it has no meaning."""

    def __init__(self, tokens: GrammarTokens, source: str, field: str) -> None:
        self._matcher = LLMatcher(tokens.tokenizer, LLMatcher.grammar_from_lark(source), log_level=0)
        if self._matcher.is_error():
            raise InvalidArgument.field(field, f"This schema cannot be followed: {self._matcher.get_error()}")

    def constraint(self) -> GrammarConstraint:
        return GrammarConstraint(self._matcher.deep_copy())


class GrammarConstraint:
    """Where one answer stands in its grammar."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    @property
    def is_complete(self) -> bool:
        """Nothing may follow but the end."""
        return bool(self._matcher.is_stopped())

    def allow(self, logits: Tensor) -> None:
        packed = torch.frombuffer(bytearray(self._matcher.compute_bitmask()), dtype=torch.uint8).to(logits.device)
        bits = (packed[:, None] >> torch.arange(8, dtype=torch.uint8, device=logits.device)) & 1
        logits.masked_fill_(bits.flatten()[: len(logits)] == 0, -torch.inf)

    def accept(self, token: int) -> None:
        self._matcher.consume_token(token)


def answer_grammar(config: GenerationConfig) -> tuple[str, str] | None:
    """(grammar, field it comes from) for what the answer must look like; None when it is free text."""
    if config.response_schema is not None and config.response_json_schema is not None:
        raise InvalidArgument.field("generation_config.response_json_schema", "Set it or response_schema, not both.")
    kind, google, standard = config.response_mime_type, config.response_schema, config.response_json_schema
    field = "generation_config.response_schema" if google is not None else "generation_config.response_json_schema"
    if (google is not None or standard is not None) and kind in ("", "text/plain"):
        raise InvalidArgument.field(field, "Set response_mime_type to application/json, or text/x.enum for an enum.")
    if kind == "text/x.enum":
        values = (google or standard or {}).get("enum")
        if not isinstance(values, list) or not values or not all(isinstance(value, str) for value in values):
            raise InvalidArgument.field(field, "text/x.enum needs a schema with a list of texts as enum.")
        return _lark(" | ".join(json.dumps(value, ensure_ascii=False) for value in values)), field
    if kind != "application/json":
        return None
    schema: dict[str, Any] = {"type": "object"}
    if google is not None:
        schema = json_schema(google)
    elif standard is not None:
        schema = standard
    return _lark(_json(schema)), field


def call_grammar(tools: tuple[dict[str, Any], ...]) -> tuple[str, str]:
    """(grammar, field) for an answer that is a call of one of these functions, as the renderer writes calls."""
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": tool["name"]}, "arguments": json_schema(tool["parameters"])},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for tool in tools
    ]
    rules = f'"<tool_call>\\n" call "\\n</tool_call>"\ncall: {_json({"anyOf": calls})}'
    return _lark(rules), "tools"


def json_schema(schema: Any) -> Any:
    """Google's schema (capital types, nullable, counts as text) as a JSON schema; objects closed unless they say."""
    if not isinstance(schema, dict):
        return schema
    found: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "properties" and isinstance(value, dict):
            order = schema.get("propertyOrdering") or schema.get("property_ordering") or list(value)
            names = [name for name in order if name in value] + [name for name in value if name not in order]
            found[key] = {name: json_schema(value[name]) for name in names}
        elif key in ("anyOf", "any_of"):
            found["anyOf"] = [json_schema(item) for item in value]
        elif key in ("items", "additionalProperties"):
            found[key] = json_schema(value)
        elif key in ("enum", "required", "const"):
            found[key] = value
        elif key == "format":
            found |= {key: value} if value in FORMATS else {}
        elif key not in DROPPED_KEYS:
            name = "".join(part[:1].upper() + part[1:] if n else part for n, part in enumerate(key.split("_")))
            found[name] = int(value) if name in COUNTS else lower_types({key: value})[key]
    if found.get("type") == "object" and "properties" in found:
        found.setdefault("additionalProperties", False)
    return {"anyOf": [found, {"type": "null"}]} if schema.get("nullable") is True else found


def _json(schema: dict[str, Any]) -> str:
    return f"%json {json.dumps({**schema, 'x-guidance': JSON_OPTIONS}, ensure_ascii=False)}"


def _lark(rule: str) -> str:
    return f"start: {rule}\n"
