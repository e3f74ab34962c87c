"""Fast rendering by plans: data is prepared 5.1 times as fast as without them (`benchmarks/data_prepare.py --parts`).

A chat template is traced once for each shape of conversation, and the plan is then filled in.

A shape is the sequence of roles of plain text turns. The template renders it with texts that record every operation.
Texts that are only stripped and printed become slots. Tests of them (`'</think>' in content`) become conditions. After
any other operation the shape has no plan and is rendered in full every time. A plan for training is used only if it
gives the same pieces as the full rendering on all probe texts.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sarto.conversations.conversation import Role, RowFault, Turn
from sarto.engine.rendering.chat_template import ChatTemplate
from sarto.engine.rendering.spans import MARK, Piece, prompt_pieces, training_pieces

LONGEST_SHAPE = 12
# Unicode noncharacters, which no text of a template should have; `_covers` rejects a plan with one in literal text.
_OPEN, _CLOSE, _TRIM = "\ufdd2", "\ufdd3", "\ufdd4"
_SLOT = re.compile(f"{_OPEN}([0-9]+){_CLOSE}((?:{_TRIM}[0-9]+{_CLOSE})*)")
# Texts that a wrong plan would render differently: outer whitespace, JSON and HTML escapes, falsy text, scripts, roles.
_PROBES = ("plain", "  a\n\nb  ", '\n"q" \\ {x} <b>\t', "0", "é漢 字\u200d", "user assistant system", "x" * 300)
Trim = tuple[str, str | None]
"""`strip`, `lstrip` or `rstrip`, and its argument."""


class _Trace:
    """The operations of a template on the texts of one rendering. `is_independent_of_text` is false after an
    operation whose result may depend on a text."""

    def __init__(self) -> None:
        self.is_independent_of_text = True
        self.questions: list[tuple[int, str, Any, bool]] = []
        self.trims: list[Trim] = []


class _Placeholder(str):
    """A text that stands for the text of turn `number`; its characters are a mark that is kept when it is printed and
    joined."""

    number: int
    trace: _Trace
    actual: str
    marks: str

    @classmethod
    def make(cls, number: int, actual: str, trace: _Trace, marks: str = "") -> _Placeholder:
        slot = cls(f"{_OPEN}{number}{_CLOSE}{marks}")
        slot.number, slot.trace, slot.actual, slot.marks = number, trace, actual, marks
        return slot

    def _trim(self, method: str, chars: str | None) -> str:
        trims = self.trace.trims
        if (method, chars) not in trims:
            trims.append((method, chars))
        marks = f"{self.marks}{_TRIM}{trims.index((method, chars))}{_CLOSE}"
        return _Placeholder.make(self.number, getattr(str, method)(self.actual, chars), self.trace, marks)

    def strip(self, chars: str | None = None, /) -> str:
        return self._trim("strip", chars)

    def lstrip(self, chars: str | None = None, /) -> str:
        return self._trim("lstrip", chars)

    def rstrip(self, chars: str | None = None, /) -> str:
        return self._trim("rstrip", chars)

    def _ask(self, question: str, argument: Any, answer: bool) -> bool:
        if self.marks:  # a test of the trimmed text: too rare to support
            self.trace.is_independent_of_text = False
        self.trace.questions.append((self.number, question, argument, answer))
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
        return _JoinedText.make(str.__add__(self, other), self.trace)

    def __radd__(self, other: str) -> str:
        return _JoinedText.make(str.__add__(other, self), self.trace)

    __hash__ = str.__hash__


class _JoinedText(str):
    """Text that contains a slot: it may be printed and joined further, and no other operation is allowed."""

    trace: _Trace

    @classmethod
    def make(cls, text: str, trace: _Trace) -> _JoinedText:
        joined = cls(text)
        joined.trace = trace
        return joined

    def __add__(self, other: str, /) -> str:
        return _JoinedText.make(str.__add__(self, other), self.trace)

    def __radd__(self, other: str) -> str:
        return _JoinedText.make(str.__add__(other, self), self.trace)

    def __bool__(self) -> bool:
        return True

    __hash__ = str.__hash__


def _give_up(name: str) -> Any:
    original = getattr(str, name)

    def method(self: Any, *arguments: Any, **named: Any) -> Any:
        self.trace.is_independent_of_text = False
        return original(self, *arguments, **named)

    return method


_PRINTING = {"__new__", "__init__", "__class__", "__getattribute__", "__setattr__", "__delattr__", "__init_subclass__",
             "__subclasshook__", "__dir__", "__doc__", "__str__", "__repr__", "__hash__", "__sizeof__", "__reduce__",
             "__reduce_ex__", "__getstate__", "__getnewargs__", "maketrans"}  # fmt: skip
# Every other method of `str` gives up, those of later Python versions too: a method that was not traced would return
# text of the mark instead of text of the turn.
for _kind in (_Placeholder, _JoinedText):
    for _name in dir(str):
        if _name not in _PRINTING and _name not in vars(_kind):
            setattr(_kind, _name, _give_up(_name))


@dataclass(frozen=True, slots=True)
class TextSlot:
    """The text of one turn, trimmed as the template trims it."""

    turn: int
    trims: tuple[Trim, ...]

    def of(self, texts: list[str]) -> str:
        text = texts[self.turn]
        for method, chars in self.trims:
            text = text.strip(chars) if method == "strip" else getattr(str, method)(text, chars)
        return text


Step = tuple["str | TextSlot", ...]
"""Literal text and slots, in order."""


@dataclass(frozen=True, slots=True)
class TemplatePlan:
    """Rows of (step, learned) pieces, and the conditions of every text that fills the plan."""

    rows: tuple[tuple[tuple[Step, bool], ...], ...]
    questions: tuple[tuple[int, str, Any, bool], ...]

    def fits(self, texts: list[str]) -> bool:
        for number, question, argument, answer in self.questions:
            text = texts[number]
            if question == "in":
                actual = argument in text
            elif question == "==":
                actual = argument == text
            elif question == "startswith":
                actual = text.startswith(*argument)
            else:
                actual = text.endswith(*argument)
            if actual is not answer:
                return False
        return True

    def fill(self, texts: list[str]) -> list[list[Piece]]:
        return [[Piece(fill_step(step, texts), learned) for step, learned in row] for row in self.rows]


def fill_step(step: Step, texts: list[str]) -> str:
    return "".join([part if type(part) is str else part.of(texts) for part in step])  # type: ignore[union-attr]


def make_plan(template: ChatTemplate, roles: tuple[Role, ...], special: re.Pattern[str]) -> TemplatePlan | None:
    """The plan of a shape; None if its conversations have to be rendered in full."""
    if len(roles) > LONGEST_SHAPE or "tool" in roles or not template.is_traceable:
        return None
    plan = _traced(roles, lambda turns: training_pieces(template, turns, (), special))
    if plan is not None and all(_agrees(plan, template, roles, special, probe) for probe in range(len(_PROBES))):
        return plan
    return None


def make_prompt_plan(template: ChatTemplate, roles: tuple[Role, ...], special: re.Pattern[str]) -> TemplatePlan | None:
    """The plan of serving's prompt for conversations of a shape, with one row. It is compared with training's plan and
    never filled in, so it needs no probe texts."""
    return _traced(roles, lambda turns: [prompt_pieces(template, turns, (), special, thinking=False)])


def _traced(roles: tuple[Role, ...], render: Callable[[tuple[Turn, ...]], list[list[Piece]]]) -> TemplatePlan | None:
    """The operations of a rendering on texts of these roles; None if it does more than print, trim and test them."""
    trace = _Trace()
    turns = tuple(Turn(role, _Placeholder.make(number, f"text {number}", trace)) for number, role in enumerate(roles))
    try:
        rows = render(turns)
    except RowFault:
        return None
    if not trace.is_independent_of_text:
        return None
    plan = TemplatePlan(
        tuple(tuple((_step(piece.text, trace.trims), piece.learned) for piece in row) for row in rows),
        tuple(set(trace.questions)),
    )
    return plan if _covers(plan, roles) else None


def _step(text: str, trims: list[Trim]) -> Step:
    parts: list[str | TextSlot] = []
    at = 0
    for match in _SLOT.finditer(text):
        applied = tuple(trims[int(index)] for index in re.findall("[0-9]+", match[2]))
        parts += [text[at : match.start()], TextSlot(int(match[1]), applied)]
        at = match.end()
    return tuple(part for part in (*parts, text[at:]) if part != "")


def _covers(plan: TemplatePlan, roles: tuple[Role, ...]) -> bool:
    """Whether every turn is printed, and no mark is inside literal text."""
    parts = [part for row in plan.rows for step, _ in row for part in step]
    printed = {part.turn for part in parts if isinstance(part, TextSlot)}
    literals = "".join(part for part in parts if isinstance(part, str))
    return printed == set(range(len(roles))) and not any(mark in literals for mark in (_OPEN, _CLOSE, _TRIM, MARK))


def _agrees(
    plan: TemplatePlan, template: ChatTemplate, roles: tuple[Role, ...], special: re.Pattern[str], probe: int
) -> bool:
    texts = [_PROBES[(probe + number) % len(_PROBES)] for number in range(len(roles))]
    if not plan.fits(texts):
        return True  # the plan is not used for such texts
    turns = tuple(Turn(role, text) for role, text in zip(roles, texts, strict=True))
    try:
        return plan.fill(texts) == training_pieces(template, turns, (), special)
    except RowFault:
        return False
