"""Responses that are valid by construction: schemas, enums and function calls as grammars over a model's tokens.

llguidance computes the allowed tokens; this module converts requests into grammars. Loads no torch.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from sarto.conversations.gemini_rows import plain_schema
from sarto.errors import InvalidArgument
from sarto.schema.generation import GenerationConfig

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions  # lives in its type stub only

JSON_OPTIONS: JsonCompileOptions = {"whitespace_pattern": r"( |\n {0,32})"}
"""White space in JSON responses: none, one space, or a line break with indentation; never unlimited."""
DROPPED_KEYS = frozenset(["example", "propertyOrdering", "property_ordering", "title", "default", "nullable"])
"""Keys of Google's schema without an effect on validity, or handled here."""
FORMATS = frozenset(["date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"])
MOST_SOURCE, MOST_PATTERNS, PATTERN = 1_000_000, 200, '"pattern":'
MOST_COMPILE_SECONDS = 0.5
MOST_ERROR_CHARACTERS = 1000
LIMITS = LLParserLimits(step_lexer_fuel=100_000, step_max_items=25_000, max_lexer_states=50_000, verbose_errors=False)
"""Limits of the work per token, a few milliseconds; and of the memory of one grammar, some 100 MB."""
MOST_DIGITS = 18
COUNTS = frozenset(["minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"])


class GrammarTokens:
    """The vocabulary of one base in llguidance's form. Created once; thread-safe."""

    def __init__(self, folder: Path, vocabulary: int, end_ids: frozenset[int]) -> None:
        text = (folder / "tokenizer.json").read_text(encoding="utf-8")
        self.tokenizer = LLTokenizer(text, n_vocab=vocabulary, eos_token=sorted(end_ids))


class Grammar:
    """A grammar in llguidance's dialect of Lark, compiled for one vocabulary. Raises InvalidArgument with the field if
    it is invalid."""

    def __init__(self, tokens: GrammarTokens, source: str, field: str) -> None:
        self._matcher = LLMatcher(tokens.tokenizer, LLMatcher.grammar_from_lark(source), log_level=0, limits=LIMITS)
        if self._matcher.is_error():
            words = self._matcher.get_error()[:MOST_ERROR_CHARACTERS]
            raise InvalidArgument.field(field, f"This schema cannot be enforced: {words}")

    def matcher(self) -> LLMatcher:
        """A new matcher at the start of the grammar."""
        return self._matcher.deep_copy()  # compiling again may take up to MOST_COMPILE_SECONDS


def check_grammar(tokens: GrammarTokens, source: str, field: str) -> None:
    """Raises InvalidArgument for an invalid grammar, and for one that takes long to compile or to start. The worker
    compiles it once more, beside other requests."""
    if len(source) > MOST_SOURCE:
        raise InvalidArgument.field(
            field, f"The schema has {len(source)} characters; at most {MOST_SOURCE} are allowed."
        )
    # Counted before compiling: the automaton can double with each pattern (decision 111).
    if source.count(PATTERN) > MOST_PATTERNS:
        raise InvalidArgument.field(field, f"The schema has more than {MOST_PATTERNS} patterns.")
    began = time.thread_time()  # processor time: other load must not decide whether a schema is refused
    # The first mask counts too: llguidance builds parts of its lexer when they are first needed.
    Grammar(tokens, source, field).matcher().compute_bitmask()
    seconds = time.thread_time() - began
    if seconds > MOST_COMPILE_SECONDS:
        words = f"This schema takes {seconds:.1f} s to prepare, where at most {MOST_COMPILE_SECONDS:g} s are allowed"
        raise InvalidArgument.field(field, f"{words}; make it simpler: fewer patterns, alternatives and counts.")


def answer_grammar(config: GenerationConfig) -> tuple[str, str] | None:
    """(grammar, its field) for the form of the response; None for free text."""
    if config.response_schema is not None and config.response_json_schema is not None:
        raise InvalidArgument.field("generation_config.response_json_schema", "Set it or response_schema, not both.")
    kind, google, standard = config.response_mime_type, config.response_schema, config.response_json_schema
    field = "generation_config.response_schema" if google is not None else "generation_config.response_json_schema"
    if (google is not None or standard is not None) and kind in ("", "text/plain"):
        raise InvalidArgument.field(field, "Set response_mime_type to application/json, or text/x.enum for an enum.")
    if kind == "text/x.enum":
        chosen = google or standard
        values = chosen.get("enum") if isinstance(chosen, dict) else None
        if not isinstance(values, list) or not values or not all(isinstance(value, str) for value in values):
            raise InvalidArgument.field(field, "text/x.enum needs a schema with a list of texts as enum.")
        return _lark(" | ".join(json.dumps(value, ensure_ascii=False) for value in values)), field
    if kind != "application/json":
        return None
    schema: dict[str, Any] = {"type": "object"}
    if google is not None:
        try:
            schema = json_schema(google)
        except (TypeError, ValueError, AttributeError, RecursionError):
            raise InvalidArgument.field(
                field, "This is not a schema: one of its keys has a value of the wrong type."
            ) from None
    elif standard is not None:
        schema = standard
    if not isinstance(schema, dict):
        raise InvalidArgument.field(field, "This is not a schema: write a JSON object.")
    return _lark(_json(schema)), field


def call_grammar(tools: tuple[dict[str, Any], ...]) -> tuple[str, str]:
    """(grammar, its field) for a response that calls one of these functions, in the renderer's form."""
    try:
        calls = [
            {
                "type": "object",
                "properties": {"name": {"const": tool["name"]}, "arguments": json_schema(tool["parameters"])},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
            for tool in tools
        ]
    except (TypeError, ValueError, AttributeError):
        raise InvalidArgument.field("tools", "The parameters of a function are not a schema.") from None
    rules = f'"<tool_call>\\n" call "\\n</tool_call>"\ncall: {_json({"anyOf": calls})}'
    return _lark(rules), "tools"


def _count(value: Any, key: str) -> int:
    """A count in a schema. Raises ValueError."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= MOST_DIGITS:
        return int(value)
    if type(value) in (int, float) and 0 <= value < 10**MOST_DIGITS and value == int(value):
        return int(value)
    raise ValueError(f"{key} is not a count of at most {MOST_DIGITS} digits")


def _list(value: Any, key: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{key} is not a list")
    return value


def _texts(value: Any) -> list[str]:
    if not all(isinstance(one, str) for one in _list(value, "propertyOrdering")):
        raise ValueError("propertyOrdering does not hold names of properties")
    return list(dict.fromkeys(value))


def json_schema(schema: Any) -> Any:
    """Google's schema (capital types, nullable, counts as text) as a JSON schema. Objects are closed unless they allow
    further properties."""
    return _standard(plain_schema(schema))


def _standard(schema: Any) -> Any:
    if not isinstance(schema, dict):
        return schema
    standard: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "properties" and isinstance(value, dict):
            order = _texts(schema.get("propertyOrdering") or schema.get("property_ordering") or list(value))
            names = [name for name in order if name in value] + [name for name in value if name not in order]
            standard[key] = {name: _standard(value[name]) for name in names}
        elif key in ("anyOf", "any_of"):
            standard["anyOf"] = [_standard(item) for item in _list(value, key)]
        elif key in ("items", "additionalProperties"):
            standard[key] = _standard(value)
        elif key in ("enum", "required", "const"):
            standard[key] = value
        elif key == "format":
            standard |= {key: value} if isinstance(value, str) and value in FORMATS else {}
        elif key not in DROPPED_KEYS:
            name = "".join(part[:1].upper() + part[1:] if n else part for n, part in enumerate(key.split("_")))
            standard[name] = _count(value, key) if name in COUNTS else value
    if standard.get("type") == "object" and "properties" in standard:
        standard.setdefault("additionalProperties", False)
        if (
            standard["additionalProperties"] is False and "required" in standard
        ):  # Google passes over names it does not know
            standard["required"] = [name for name in standard["required"] if name in standard["properties"]]
    return {"anyOf": [standard, {"type": "null"}]} if schema.get("nullable") is True else standard


def _json(schema: dict[str, Any]) -> str:
    return f"%json {json.dumps({**schema, 'x-guidance': JSON_OPTIONS}, ensure_ascii=False)}"


def _lark(rule: str) -> str:
    return f"start: {rule}\n"
