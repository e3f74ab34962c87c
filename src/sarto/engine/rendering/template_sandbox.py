"""The Jinja environment of chat templates, which come with a base of any user: sandboxed, with a budget.

Operations by which a short template would run or grow without end are refused by name: long ranges, texts multiplied,
padded or formatted to great width, an output longer than any context. These checks give clear errors; the hard limit is
the rendering process (`serving/preparation/program.py`, or the run), which has limits of time and memory.
"""

from __future__ import annotations

import datetime
import functools
import json
import re
from collections.abc import Iterable
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sarto.errors import FailedPrecondition

FIXED_DAY = datetime.datetime(2024, 7, 26, tzinfo=datetime.UTC)
"""The date that templates see, so that a prompt has the same tokens on every day. It is the day that such templates
themselves use as default."""
MOST_SOURCE = 500_000
MOST_RANGES = 1_000_000
"""Most items of all ranges of one rendering together."""
MOST_CHARACTERS = 32_000_000
"""Most characters of a text that a template computes, and of its output."""
MOST_NUMBER = 100_000
"""Largest width, count or precision of a filter or a text method."""
NUMBERED = ("batch", "center", "indent", "slice", "tojson", "wordwrap")
"""Filters whose argument is the length of their result."""
_WIDE = re.compile(r"[0-9]{6,}|%[^a-zA-Z%]*\*")
_NOT_ASCII = re.compile("[^\x00-\x7f\ufdd0]")
"""All characters but the mark of `spans.py`."""
_SIZED = (str, bytes, list, tuple)


class _GenerationTag(Extension):
    """`{% generation %}` marks replies in some templates. Masks come from text spans, so the tag is only parsed."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """The environment of one template. Operators are intercepted, which also disables constant folding."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, "jinja2.ext.loopcontrols"])
        self.filters["tojson"] = _to_json
        self.filters |= {name: _modest(self.filters[name]) for name in (*NUMBERED, "format")}
        del self.globals["lipsum"]
        self.globals |= {"raise_exception": _raise_exception, "strftime_now": FIXED_DAY.strftime, "range": self._range}
        self._left = MOST_RANGES

    @staticmethod
    def concat(pieces: Iterable[str]) -> str:
        """Join the parts of a rendering, within the budget."""
        parts, length = [], 0
        for piece in pieces:
            parts.append(piece)
            length += _size(piece)
            if length > MOST_CHARACTERS:
                raise jinja2.TemplateError(f"an output of more than {MOST_CHARACTERS} characters")
        return "".join(parts)

    def compile_template(self, source: str) -> jinja2.Template:
        """Compile a template. Raises FailedPrecondition for an invalid one."""
        if len(source) > MOST_SOURCE:
            raise FailedPrecondition(
                f"The chat template has {len(source)} characters; at most {MOST_SOURCE} are allowed."
            )
        try:
            return self.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise FailedPrecondition(f"The chat template does not compile: line {error.lineno}: {error}") from None
        except (jinja2.TemplateError, ValueError, TypeError, ArithmeticError, RecursionError, MemoryError) as error:
            raise FailedPrecondition(f"The chat template does not compile: {error}") from None

    def begin(self) -> None:
        """Start a new rendering with the full budget."""
        self._left = MOST_RANGES

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str):
            _check_format(left)
        elif operator == "**" and max(abs(left), abs(right)) > 1000:
            raise jinja2.TemplateError("a power of numbers above 1000")
        elif operator == "*" and (isinstance(left, _SIZED) or isinstance(right, _SIZED)):
            text, times = (left, right) if isinstance(left, _SIZED) else (right, left)
            if _size(text) * max(int(times), 0) > MOST_NUMBER:
                raise jinja2.TemplateError(f"a text multiplied to more than {MOST_NUMBER} characters")
        elif operator == "+" and isinstance(left, _SIZED) and _size(left) + _size(right) > MOST_CHARACTERS:
            raise jinja2.TemplateError(f"a text of more than {MOST_CHARACTERS} characters")
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(getattr(__obj, "__self__", None), str):
            _check_numbers(args, kwargs)
        return super().call(__context, __obj, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Any:
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def limited(*args: Any, **kwargs: Any) -> Any:
            _check_format(value.__self__)
            _check_numbers(args, kwargs)
            return wrapped(*args, **kwargs)

        return limited

    def _range(self, *bounds: int) -> range:
        numbers = range(*bounds)
        self._left -= len(numbers)
        if self._left < 0:
            raise jinja2.TemplateError(f"ranges of more than {MOST_RANGES} items together")
        return numbers


def _size(value: Any) -> int:
    """Its length, without an operation that a text of `template_plans` would record."""
    return str.__len__(value) if isinstance(value, str) else len(value)


def _modest(function: Any) -> Any:
    """Wrap a filter so that it refuses large numbers, and large widths in a format."""

    @functools.wraps(function)
    def limited(*args: Any, **kwargs: Any) -> Any:
        _check_numbers(args, kwargs)
        if function.__name__ == "do_format":
            _check_format(str(args[0]))
        return function(*args, **kwargs)

    return limited


def _check_numbers(args: Iterable[Any], kwargs: dict[str, Any]) -> None:
    for value in (*args, *kwargs.values()):
        if isinstance(value, int) and abs(value) > MOST_NUMBER:
            raise jinja2.TemplateError(f"the number {value:g}, where at most {MOST_NUMBER} is allowed")


def _check_format(text: str) -> None:
    if _WIDE.search(text):
        raise jinja2.TemplateError("a format with a width of six digits or more, or a width that is a value")


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """`json.dumps`, except that our mark is not escaped, even in ASCII, so that it can be found."""
    text = json.dumps(value, ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys)
    return _NOT_ASCII.sub(lambda match: json.dumps(match[0])[1:-1], text) if ensure_ascii else text
