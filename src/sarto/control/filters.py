"""List filters, the subset of AIP-160 that `docs/api.md` describes: comparisons, `AND`, `OR`, `NOT`, `-`, parentheses.

`parse` gives a tree; `to_sql` turns it into a condition with one compiler per field, `matches` asks it of a value in
memory. As in AIP-160, OR binds tighter than AND. Every fault names the character, counted from 1.
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

MOST_CHARACTERS = 4096
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
class All:
    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Any_:
    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Not:
    part: Node


Node = Comparison | Call | All | Any_ | Not
Compiler = Callable[[Comparison], sa.ColumnElement[bool]]


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    position: int


def fail(position: int, problem: str) -> NoReturn:
    raise InvalidArgument.field("filter", f"At character {position}: {problem}.")


def parse(text: str) -> Node | None:
    """The tree of a filter, None for an empty one. Raises InvalidArgument."""
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
    """`fields` maps a field, or `name.` for a map such as labels, to what compiles a comparison of it."""
    if isinstance(node, Not):
        return sa.not_(to_sql(node.part, fields))
    if isinstance(node, All):
        return sa.and_(*(to_sql(part, fields) for part in node.parts))
    if isinstance(node, Any_):
        return sa.or_(*(to_sql(part, fields) for part in node.parts))
    if isinstance(node, Call):
        fail(node.position, f'the function "{node.function}" is not known here')
    compiler = fields.get(node.field) or fields.get(node.field.partition(".")[0] + ".")
    if compiler is None:
        unknown(node, (name + "KEY" if name.endswith(".") else name for name in fields))
    return compiler(node)


def matches(node: Node | None, holds: Callable[[Comparison | Call], bool]) -> bool:
    """Whether a value meets the filter; `holds` answers for the leaves."""
    if node is None:
        return True
    if isinstance(node, Not):
        return not matches(node.part, holds)
    if isinstance(node, All):
        return all(matches(part, holds) for part in node.parts)
    if isinstance(node, Any_):
        return any(matches(part, holds) for part in node.parts)
    return holds(node)


def meets(tree: Node | None, found: dict[str, Any], noun: str) -> bool:
    """Whether a model or endpoint, as JSON, meets a filter on labels, display name (by `noun`) its name or id."""

    def holds(node: Comparison | Call) -> bool:
        if isinstance(node, Call):
            fail(node.position, f'the function "{node.function}" is not known here')
        field, _, key = node.field.partition(".")
        if field == "labels" and key:
            return text_holds(node, found.get("labels", {}).get(key))
        if field in ("displayName", "display_name"):
            return text_holds(node, found.get("displayName"))
        if field in ("name", noun):
            return text_holds(node, found["name"] if "/" in node.value else found["name"].rpartition("/")[2])
        unknown(node, ("labels.KEY", "display_name", noun))

    return matches(tree, holds)


def unknown(node: Comparison, known: Any) -> NoReturn:
    fail(node.position, f'the field "{node.field}" cannot be filtered by; use {", ".join(sorted(known))}')


def text_holds(node: Comparison, value: str | None) -> bool:
    """A comparison of a text in memory; None is an absent value. `:` means present for `*`, else contains."""
    if node.operator == ":":
        return value is not None and (node.value == "*" or node.value.lower() in value.lower())
    if node.operator not in ("=", "!="):
        fail(node.position, f'"{node.field}" takes =, != and :, not {node.operator}')
    pattern = ".*".join(re.escape(piece) for piece in node.value.split("*"))
    equal = value is not None and re.fullmatch(pattern, value, re.DOTALL) is not None
    return equal if node.operator == "=" else not equal


def time_holds(node: Comparison, seconds: float) -> bool:
    if node.operator not in _ORDER:
        fail(node.position, f'"{node.field}" takes =, !=, <, <=, > and >=, not {node.operator}')
    return _ORDER[node.operator](seconds, moment(node))


def text_sql(column: sa.ColumnElement[str]) -> Compiler:
    """Equality (with `*` at either end or inside), and `:` for contains."""

    def compile_(node: Comparison) -> sa.ColumnElement[bool]:
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

    return compile_


def choice_sql(column: sa.ColumnElement[str], choices: type[Any]) -> Compiler:
    """Equality with a member of an enum."""

    def compile_(node: Comparison) -> sa.ColumnElement[bool]:
        if node.value not in choices.__members__:
            fail(
                node.position,
                f'"{node.value}" is not a {choices.__name__}; use one of {", ".join(choices.__members__)}',
            )
        if node.operator not in ("=", "!=", ":"):
            fail(node.position, f'"{node.field}" takes = and !=, not {node.operator}')
        return column != node.value if node.operator == "!=" else column == node.value

    return compile_


def time_sql(column: sa.ColumnElement[float]) -> Compiler:
    """Comparison of a column of seconds since 1970 with an RFC 3339 time."""

    def compile_(node: Comparison) -> sa.ColumnElement[bool]:
        if node.operator not in _ORDER:
            fail(node.position, f'"{node.field}" takes =, !=, <, <=, > and >=, not {node.operator}')
        condition: sa.ColumnElement[bool] = _ORDER[node.operator](column, moment(node))  # type: ignore[assignment]
        return condition

    return compile_


def moment(node: Comparison) -> float:
    """The comparison's value as seconds since 1970; a time without zone is UTC."""
    try:
        found = datetime.fromisoformat(node.value)
    except ValueError:
        fail(node.position, f'"{node.value}" is not a time such as "2026-11-23T10:00:00Z"')
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def _tokens(text: str) -> list[_Token]:
    found: list[_Token] = []
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
        found.append(_Token(kind, value, match.start(kind) + 1))
        at = match.end()
    return found


class _Reader:
    """Recursive descent over the tokens of one filter."""

    def __init__(self, tokens: list[_Token], end: int) -> None:
        self.tokens = tokens
        self.end = end
        self.at = 0

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
        """The next token if it is of that kind (and text), else None."""
        if self.at_end:
            return None
        token = self.tokens[self.at]
        if token.kind != kind or (text and token.text != text):
            return None
        self.at += 1
        return token

    def expression(self, depth: int) -> Node:
        """Parts joined by AND, or just written one after another."""
        if depth > MOST_DEPTH:
            fail(self.position, f"parentheses are nested deeper than {MOST_DEPTH}")
        parts = [self.factor(depth)]
        while not self.at_end and self.text != ")":
            self.take("word", "AND")
            parts.append(self.factor(depth))
        return parts[0] if len(parts) == 1 else All(tuple(parts))

    def factor(self, depth: int) -> Node:
        parts = [self.term(depth)]
        while self.take("word", "OR"):
            parts.append(self.term(depth))
        return parts[0] if len(parts) == 1 else Any_(tuple(parts))

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
                fail(self.position, f'expected a key behind "{name}"')
            name += quoted.text
        comparator = self.take("operator")
        if comparator is None:
            fail(self.position, f'expected a comparison behind "{name}": =, !=, <, <=, >, >= or :')
        value = self.take("string") or self.take("word")
        if value is None:
            fail(self.position, f'expected a value behind "{comparator.text}"')
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
