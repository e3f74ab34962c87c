"""List filters, the subset of AIP-160 that `docs/api.md` describes: comparisons, `AND`, `OR`, `NOT`, `-`, parentheses.

`parse` returns a tree. `to_sql` compiles it to a condition, with one compiler per field; `matches` evaluates it on a
value in memory. As in AIP-160, OR binds tighter than AND. Every error names a character, counted from 1.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NoReturn

import sqlalchemy as sa

from sarto.errors import InvalidArgument
from sarto.system.globs import star_matches

MOST_CHARACTERS = 4096
MOST_TERMS = 100
"""Most terms; databases refuse conditions that are nested many hundred times."""
MOST_DEPTH = 50

_TOKEN = re.compile(
    r"""\s*(?:
        (?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
      | (?P<operator><=|>=|!=|=|<|>|:)
      | (?P<punctuation>[(),])
      | (?P<word>\d{4}-\d\d-\d\dT[0-9:.+zZ-]+|[^\s"'()<>=!:,]+)
    )""",
    re.VERBOSE,
)
_ORDER: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True)
class Comparison:
    field: str
    operator: str
    value: str
    position: int


@dataclass(frozen=True)
class Call:
    function: str
    arguments: tuple[str, ...]
    position: int


@dataclass(frozen=True)
class AllOf:
    parts: tuple[Node, ...]


@dataclass(frozen=True)
class AnyOf:
    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Not:
    part: Node


Node = Comparison | Call | AllOf | AnyOf | Not
Compiler = Callable[[Comparison], sa.ColumnElement[bool]]


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    position: int


def fail(position: int, problem: str) -> NoReturn:
    raise InvalidArgument.field("filter", f"At character {position}: {problem}.")


def parse(text: str) -> Node | None:
    """The tree of a filter; None for an empty one. Raises InvalidArgument."""
    if len(text) > MOST_CHARACTERS:
        fail(MOST_CHARACTERS + 1, f"the filter is longer than {MOST_CHARACTERS} characters")
    if not text.strip():
        return None
    reader = _Reader(_tokens(text), len(text) + 1)
    node = reader.expression(0)
    if not reader.at_end:
        fail(reader.position, f'unexpected "{reader.text}"')
    return node


def to_sql(node: Node, fields: Mapping[str, Compiler]) -> sa.ColumnElement[bool]:
    """`fields` maps a field, or `name.` for a map such as labels, to the compiler of its comparisons."""
    if isinstance(node, Not):
        return sa.not_(to_sql(node.part, fields))
    if isinstance(node, AllOf):
        return sa.and_(*(to_sql(part, fields) for part in node.parts))
    if isinstance(node, AnyOf):
        return sa.or_(*(to_sql(part, fields) for part in node.parts))
    if isinstance(node, Call):
        fail(node.position, f'the function "{node.function}" is not known here')
    compiler = fields.get(node.field) or fields.get(node.field.partition(".")[0] + ".")
    if compiler is None:
        unknown(node, (name + "KEY" if name.endswith(".") else name for name in fields))
    return compiler(node)


def matches(node: Node | None, holds: Callable[[Comparison | Call], bool]) -> bool:
    """Whether a value matches the filter; `holds` evaluates the leaves."""
    if node is None:
        return True
    if isinstance(node, Not):
        return not matches(node.part, holds)
    if isinstance(node, AllOf):
        return all(matches(part, holds) for part in node.parts)
    if isinstance(node, AnyOf):
        return any(matches(part, holds) for part in node.parts)
    return holds(node)


def meets(tree: Node | None, resource: dict[str, Any], noun: str) -> bool:
    """Whether a model or endpoint, as JSON, matches a filter on labels, display name, and name or id (by `noun`)."""

    def holds(node: Comparison | Call) -> bool:
        if isinstance(node, Call):
            fail(node.position, f'the function "{node.function}" is not known here')
        field, _, key = node.field.partition(".")
        if field == "labels" and key:
            return text_holds(node, resource.get("labels", {}).get(key))
        if field in ("displayName", "display_name"):
            return text_holds(node, resource.get("displayName"))
        if field in ("name", noun):
            return text_holds(node, resource["name"] if "/" in node.value else resource["name"].rpartition("/")[2])
        unknown(node, ("labels.KEY", "display_name", noun))

    return matches(tree, holds)


def unknown(node: Comparison, known: Any) -> NoReturn:
    fail(node.position, f'the field "{node.field}" cannot be filtered by; use {", ".join(sorted(known))}')


def text_holds(node: Comparison, value: str | None) -> bool:
    """A comparison of a text in memory; None is an absent value. For `:`, `*` means present; any other value,
    contains."""
    if node.operator == ":":
        return value is not None and (node.value == "*" or node.value.lower() in value.lower())
    if node.operator not in ("=", "!="):
        fail(node.position, f'"{node.field}" takes =, != and :, not {node.operator}')
    equal = value is not None and star_matches(node.value, value)
    return equal if node.operator == "=" else not equal


def text_sql(column: sa.ColumnElement[str]) -> Compiler:
    """Equality (with `*` at either end or inside), and `:` for contains."""

    def compiled(node: Comparison) -> sa.ColumnElement[bool]:
        if node.operator == ":":
            return column != "" if node.value == "*" else column.icontains(node.value, autoescape=True)
        if node.operator not in ("=", "!="):
            fail(node.position, f'"{node.field}" takes =, != and :, not {node.operator}')
        if "*" in node.value:
            pattern = re.sub(r"([%_/])", r"/\1", node.value).replace("*", "%")
            equal: sa.ColumnElement[bool] = column.like(pattern, escape="/")
        else:
            equal = column == node.value
        return equal if node.operator == "=" else sa.not_(equal)

    return compiled


def choice_sql(column: sa.ColumnElement[str], choices: type[Any]) -> Compiler:
    """Equality with a member of an enum."""

    def compiled(node: Comparison) -> sa.ColumnElement[bool]:
        if node.value not in choices.__members__:
            fail(
                node.position,
                f'"{node.value}" is not a {choices.__name__}; use one of {", ".join(choices.__members__)}',
            )
        if node.operator not in ("=", "!=", ":"):
            fail(node.position, f'"{node.field}" takes = and !=, not {node.operator}')
        return column != node.value if node.operator == "!=" else column == node.value

    return compiled


def time_sql(column: sa.ColumnElement[float]) -> Compiler:
    """Comparison of a column of seconds since 1970 with an RFC 3339 time."""

    def compiled(node: Comparison) -> sa.ColumnElement[bool]:
        if node.operator not in _ORDER:
            fail(node.position, f'"{node.field}" takes =, !=, <, <=, > and >=, not {node.operator}')
        condition: sa.ColumnElement[bool] = _ORDER[node.operator](column, moment(node))  # type: ignore[assignment]
        return condition

    return compiled


def moment(node: Comparison) -> float:
    """The comparison's value as seconds since 1970; a time without zone is UTC."""
    try:
        parsed = datetime.fromisoformat(node.value)
    except ValueError:
        fail(node.position, f'"{node.value}" is not a time such as "2026-11-23T10:00:00Z"')
    return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()


def _tokens(text: str) -> list[_Token]:
    tokens: list[_Token] = []
    at, end = 0, len(text.rstrip())
    while at < end:
        match = _TOKEN.match(text, at)
        if match is None or match.lastgroup is None:
            where = at + len(text[at:]) - len(text[at:].lstrip())
            fail(where + 1, "a quoted text does not end" if text[where] in "\"'" else f'unexpected "{text[where]}"')
        kind = match.lastgroup
        value = match.group(kind)
        if kind == "string":
            value = re.sub(r"\\(.)", r"\1", value[1:-1])
        tokens.append(_Token(kind, value, match.start(kind) + 1))
        at = match.end()
    return tokens


class _Reader:
    """Recursive descent over the tokens of one filter."""

    def __init__(self, tokens: list[_Token], end: int) -> None:
        self.tokens = tokens
        self.end = end
        self.at = self.terms = 0

    @property
    def at_end(self) -> bool:
        return self.at >= len(self.tokens)

    @property
    def position(self) -> int:
        return self.end if self.at_end else self.tokens[self.at].position

    @property
    def text(self) -> str:
        return "" if self.at_end else self.tokens[self.at].text

    def take(self, kind: str, text: str = "") -> _Token | None:
        """The next token if it has that kind (and text), else None."""
        if self.at_end:
            return None
        token = self.tokens[self.at]
        if token.kind != kind or (text and token.text != text):
            return None
        self.at += 1
        return token

    def expression(self, depth: int) -> Node:
        """Parts joined by AND, or in sequence."""
        if depth > MOST_DEPTH:
            fail(self.position, f"parentheses are nested deeper than {MOST_DEPTH}")
        parts = [self.factor(depth)]
        while not self.at_end and self.text != ")":
            self.take("word", "AND")
            parts.append(self.factor(depth))
        return parts[0] if len(parts) == 1 else AllOf(tuple(parts))

    def factor(self, depth: int) -> Node:
        parts = [self.term(depth)]
        while self.take("word", "OR"):
            parts.append(self.term(depth))
        return parts[0] if len(parts) == 1 else AnyOf(tuple(parts))

    def term(self, depth: int) -> Node:
        if self.take("word", "NOT"):
            return Not(self.simple(depth))
        if not self.at_end and self.tokens[self.at].kind == "word" and self.text.startswith("-"):
            token = self.tokens[self.at]
            rest = _Token("word", token.text[1:], token.position + 1)
            self.tokens[self.at : self.at + 1] = [rest] if rest.text else []
            return Not(self.simple(depth))
        return self.simple(depth)

    def simple(self, depth: int) -> Node:
        self.terms += 1
        if self.terms > MOST_TERMS:
            fail(self.position, f"the filter has more than {MOST_TERMS} terms")
        if self.take("punctuation", "("):
            inner = self.expression(depth + 1)
            if not self.take("punctuation", ")"):
                fail(self.position, 'a ")" is missing')
            return inner
        field = self.take("word")
        if field is None or field.text in ("AND", "OR", "NOT"):
            fail(field.position if field else self.position, "expected a field, such as state or labels.team")
        if self.take("punctuation", "("):
            return self.call(field)
        name = field.text
        if name.endswith("."):  # labels."a key"
            quoted = self.take("string")
            if quoted is None:
                fail(self.position, f'expected a key after "{name}"')
            name += quoted.text
        comparator = self.take("operator")
        if comparator is None:
            fail(self.position, f'expected a comparison after "{name}": =, !=, <, <=, >, >= or :')
        value = self.take("string") or self.take("word")
        if value is None:
            fail(self.position, f'expected a value after "{comparator.text}"')
        return Comparison(name, comparator.text, value.text, field.position)

    def call(self, function: _Token) -> Node:
        arguments: list[str] = []
        while not self.take("punctuation", ")"):
            argument = self.take("string") or self.take("word")
            if argument is None:
                fail(self.position, f'expected an argument of "{function.text}" or ")"')
            arguments.append(argument.text)
            self.take("punctuation", ",")
        return Call(function.text, tuple(arguments), function.position)
