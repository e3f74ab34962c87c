"""Rendering at speed: what a template does with conversations of one shape is learned once and then filled in.

A shape is the sequence of roles of plain text turns. The template renders it with texts that watch what is done to
them; texts that are only stripped and printed become slots, questions asked about them (`'</think>' in content`) become
conditions, and anything else means that the shape is rendered in full every time. A plan is used only after it gave the
same pieces as the full rendering on texts chosen to tell them apart.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sarto.engine.data.layout import MARK, Piece, prompt_pieces, training_pieces
from sarto.engine.data.template import ChatTemplate
from sarto.schema.turns import Role, RowFault, Turn

LONGEST_SHAPE = 12
_OPEN, _CLOSE, _TRIM = "\ufdd2", "\ufdd3", "\ufdd4"
_SLOT = re.compile(f"{_OPEN}([0-9]+){_CLOSE}((?:{_TRIM}[0-9]+{_CLOSE})*)")
_PROBES = ("plain", "  a\n\nb  ", '\n"q" \\ {x} <b>\t', "0", "é漢 字\u200d", "user assistant system", "x" * 300)
Trim = tuple[str, str | None]
"""`strip`, `lstrip` or `rstrip`, and its argument."""


class _Watch:
    """What a template did to the texts of one rendering."""

    def __init__(self) -> None:
        self.is_opaque = True
        self.questions: list[tuple[int, str, Any, bool]] = []
        self.trims: list[Trim] = []


class _Slot(str):
    """A text that stands for turn `number`'s; its characters are a mark that survives being printed and joined."""

    number: int
    watch: _Watch
    actual: str
    marks: str

    @classmethod
    def make(cls, number: int, actual: str, watch: _Watch, marks: str = "") -> _Slot:
        slot = cls(f"{_OPEN}{number}{_CLOSE}{marks}")
        slot.number, slot.watch, slot.actual, slot.marks = number, watch, actual, marks
        return slot

    def _trim(self, method: str, chars: str | None) -> str:
        trims = self.watch.trims
        if (method, chars) not in trims:
            trims.append((method, chars))
        marks = f"{self.marks}{_TRIM}{trims.index((method, chars))}{_CLOSE}"
        return _Slot.make(self.number, getattr(str, method)(self.actual, chars), self.watch, marks)

    def strip(self, chars: str | None = None, /) -> str:
        return self._trim("strip", chars)

    def lstrip(self, chars: str | None = None, /) -> str:
        return self._trim("lstrip", chars)

    def rstrip(self, chars: str | None = None, /) -> str:
        return self._trim("rstrip", chars)

    def _ask(self, question: str, argument: Any, answer: bool) -> bool:
        if self.marks:  # asked of the trimmed text: rare enough to leave alone
            self.watch.is_opaque = False
        self.watch.questions.append((self.number, question, argument, answer))
        return answer

    def __contains__(self, part: Any, /) -> bool:
        return self._ask("in", part, part in self.actual)

    def startswith(self, *arguments: Any) -> bool:
        return self._ask("startswith", arguments, self.actual.startswith(*arguments))

    def endswith(self, *arguments: Any) -> bool:
        return self._ask("endswith", arguments, self.actual.endswith(*arguments))

    def __eq__(self, other: object, /) -> bool:
        return self._ask("==", other, self.actual == other)

    def __ne__(self, other: object, /) -> bool:
        return not self == other

    def __bool__(self) -> bool:
        return True  # a turn of a shape is never empty

    def __add__(self, other: str, /) -> str:
        return _Joined.make(str.__add__(self, other), self.watch)

    def __radd__(self, other: str) -> str:
        return _Joined.make(str.__add__(other, self), self.watch)

    __hash__ = str.__hash__


class _Joined(str):
    """Text with a slot inside: may be printed and joined further, and nothing else."""

    watch: _Watch

    @classmethod
    def make(cls, text: str, watch: _Watch) -> _Joined:
        joined = cls(text)
        joined.watch = watch
        return joined

    def __add__(self, other: str, /) -> str:
        return _Joined.make(str.__add__(self, other), self.watch)

    def __radd__(self, other: str) -> str:
        return _Joined.make(str.__add__(other, self), self.watch)

    def __bool__(self) -> bool:
        return True

    __hash__ = str.__hash__


def _give_up(name: str) -> Any:
    original = getattr(str, name)

    def method(self: Any, *arguments: Any, **named: Any) -> Any:
        self.watch.is_opaque = False
        return original(self, *arguments, **named)

    return method


_PRINTING = {"__new__", "__init__", "__class__", "__getattribute__", "__setattr__", "__delattr__", "__init_subclass__",
             "__subclasshook__", "__dir__", "__doc__", "__str__", "__repr__", "__hash__", "__sizeof__", "__reduce__",
             "__reduce_ex__", "__getstate__", "__getnewargs__", "maketrans"}  # fmt: skip
for _kind in (_Slot, _Joined):
    for _name in dir(str):
        if _name not in _PRINTING and _name not in vars(_kind):
            setattr(_kind, _name, _give_up(_name))


@dataclass(frozen=True, slots=True)
class Slot:
    """The text of one turn, trimmed as the template trims it."""

    turn: int
    trims: tuple[Trim, ...]

    def of(self, texts: list[str]) -> str:
        text = texts[self.turn]
        for method, chars in self.trims:
            text = text.strip(chars) if method == "strip" else getattr(str, method)(text, chars)
        return text


Step = tuple["str | Slot", ...]
"""Literal text and slots, in order."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Rows of (step, learned) pieces, and the questions whose answers hold for every text this plan may fill."""

    rows: tuple[tuple[tuple[Step, bool], ...], ...]
    questions: tuple[tuple[int, str, Any, bool], ...]

    def fits(self, texts: list[str]) -> bool:
        for number, question, argument, answer in self.questions:
            text = texts[number]
            if question == "in":
                given = argument in text
            elif question == "==":
                given = argument == text
            elif question == "startswith":
                given = text.startswith(*argument)
            else:
                given = text.endswith(*argument)
            if given is not answer:
                return False
        return True

    def fill(self, texts: list[str]) -> list[list[Piece]]:
        return [[Piece(fill_step(step, texts), learned) for step, learned in row] for row in self.rows]


def fill_step(step: Step, texts: list[str]) -> str:
    return "".join([part if type(part) is str else part.of(texts) for part in step])  # type: ignore[union-attr]


def make_plan(template: ChatTemplate, roles: tuple[Role, ...], special: re.Pattern[str]) -> Plan | None:
    """The plan of a shape, or None when its conversations have to be rendered in full."""
    if len(roles) > LONGEST_SHAPE or "tool" in roles or not template.is_traceable:
        return None
    plan = _traced(roles, lambda turns: training_pieces(template, turns, (), special))
    if plan is not None and all(_agrees(plan, template, roles, special, probe) for probe in range(len(_PROBES))):
        return plan
    return None


def make_prompt_plan(template: ChatTemplate, roles: tuple[Role, ...], special: re.Pattern[str]) -> Plan | None:
    """The same for what serving sends to continue conversations of a shape: a plan of one row."""
    return _traced(roles, lambda turns: [prompt_pieces(template, turns, (), special, thinking=False)])


def _traced(roles: tuple[Role, ...], render: Callable[[tuple[Turn, ...]], list[list[Piece]]]) -> Plan | None:
    """What a rendering does with texts of these roles; None where it does more than print, trim and ask."""
    watch = _Watch()
    turns = tuple(Turn(role, _Slot.make(number, f"text {number}", watch)) for number, role in enumerate(roles))
    try:
        rows = render(turns)
    except RowFault:
        return None
    if not watch.is_opaque:
        return None
    plan = Plan(
        tuple(tuple((_step(piece.text, watch.trims), piece.learned) for piece in row) for row in rows),
        tuple(set(watch.questions)),
    )
    return plan if _covers(plan, roles) else None


def _step(text: str, trims: list[Trim]) -> Step:
    parts: list[str | Slot] = []
    at = 0
    for match in _SLOT.finditer(text):
        applied = tuple(trims[int(index)] for index in re.findall("[0-9]+", match[2]))
        parts += [text[at : match.start()], Slot(int(match[1]), applied)]
        at = match.end()
    return tuple(part for part in (*parts, text[at:]) if part != "")


def _covers(plan: Plan, roles: tuple[Role, ...]) -> bool:
    """Every turn is printed, and no mark is left inside literal text."""
    parts = [part for row in plan.rows for step, _ in row for part in step]
    printed = {part.turn for part in parts if isinstance(part, Slot)}
    literals = "".join(part for part in parts if isinstance(part, str))
    return printed == set(range(len(roles))) and not any(mark in literals for mark in (_OPEN, _CLOSE, _TRIM, MARK))


def _agrees(plan: Plan, template: ChatTemplate, roles: tuple[Role, ...], special: re.Pattern[str], probe: int) -> bool:
    texts = [_PROBES[(probe + number) % len(_PROBES)] for number in range(len(roles))]
    if not plan.fits(texts):
        return True
    turns = tuple(Turn(role, text) for role, text in zip(roles, texts, strict=True))
    try:
        return plan.fill(texts) == training_pieces(template, turns, (), special)
    except RowFault:
        return False
