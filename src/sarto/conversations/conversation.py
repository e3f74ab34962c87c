"""Turns of a conversation, independent of any wire format, and `RowFault`, the error of a row."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

Role = Literal["system", "user", "model", "tool"]

MEDIA = {
    "inlineData": "an inline file",
    "inline_data": "an inline file",
    "fileData": "a file",
    "file_data": "a file",
    "videoMetadata": "a video",
    "video_metadata": "a video",
}
KINDS = {"image": "an image", "audio": "audio", "video": "a video"}
MAX_DEPTH = 64
"""Deepest nesting allowed inside call arguments and tool schemas."""
MAX_TURNS = 1000
"""Most turns of one conversation."""
TEXT_BEHIND_CALL = ("text after a function call", "text first, then calls", "move the text to the front")


class RowFault(Exception):
    """One unusable row: its 1-based line, the JSON path, the value found, the value expected, and the remedy."""

    def __init__(self, path: str, seen: str, expected: str, fix: str, line: int = 0) -> None:
        super().__init__(path, seen, expected, fix, line)
        self.path, self.seen, self.expected, self.fix, self.line = path, seen, expected, fix, line

    @property
    def reason(self) -> str:
        """One sentence without the line number, for `droppedExampleReasons`."""
        return f"{self.path}: {self.finding}" if self.path else self.finding

    @property
    def finding(self) -> str:
        """The same without the path, for callers that report the path separately."""
        return f"saw {self.seen}, want {self.expected}; {self.fix}"

    def __str__(self) -> str:
        return f"line {self.line}: {self.reason}" if self.line else self.reason

    def to_json(self) -> dict[str, Any]:
        return {"line": self.line, "path": self.path, "seen": self.seen, "wanted": self.expected, "fix": self.fix}


@dataclass(frozen=True, slots=True)
class FunctionCall:
    """A function call of the model; `id` links a response to it in formats with ids."""

    name: str
    arguments: dict[str, Any]
    id: str = ""


@dataclass(frozen=True, slots=True)
class FunctionResponse:
    """The response of a function; `content` is text, which goes into the prompt unchanged, or another JSON value."""

    name: str
    content: Any
    id: str = ""


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn. Only a model's turn has calls or thought, only a tool's turn has responses."""

    role: Role
    text: str = ""
    calls: tuple[FunctionCall, ...] = ()
    responses: tuple[FunctionResponse, ...] = ()
    thought: str = ""
    learned: bool = True
    """False for a reply that is context only."""


def describe(value: object) -> str:
    """A JSON value as a short description, with at most about 60 characters of it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value[:57]}…"' if len(value) > 60 else f'"{value}"'
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, list):
        return f"a list of {len(value)}" if value else "an empty list"
    if isinstance(value, dict):
        names = ", ".join(str(key)[:30] for key in list(value)[:4])
        return f"an object with {names}" if value else "an empty object"
    return type(value).__name__


def join_turns(turns: list[Turn], paths: list[str], between: str = "") -> tuple[list[Turn], list[str]]:
    """Consecutive turns of one role as one turn, with the path of the first and `between` between their texts. Raises
    RowFault if content would follow a turn's calls or reply."""
    before = ""
    for turn in turns:
        if turn.role == before:
            break
        before = turn.role
    else:
        return turns, paths
    joined: list[Turn] = []
    texts: list[str] = []
    for role, members in groupby(zip(turns, paths, strict=True), key=lambda pair: pair[0].role):
        group = list(members)
        joined.append(_joined(role, group, between) if len(group) > 1 else group[0][0])
        texts.append(group[0][1])
    return joined, texts


def _joined(role: Role, group: list[tuple[Turn, str]], between: str) -> Turn:
    calls: list[FunctionCall] = []
    has_text = False
    for turn, path in group:
        if turn.thought and (has_text or calls):
            raise RowFault(path, "a thought after the reply", "thoughts first", "move the thought to the front")
        if turn.text and calls:
            raise RowFault(path, *TEXT_BEHIND_CALL)
        calls += turn.calls
        has_text = has_text or bool(turn.text)
        if turn.learned != group[0][0].learned:
            raise RowFault(path, "replies in a row with both weights", "one weight for them", "join or split them")
    return Turn(
        role,
        between.join([turn.text for turn, _ in group if turn.text]),
        tuple(calls),
        tuple([response for turn, _ in group for response in turn.responses]),
        between.join([turn.thought for turn, _ in group if turn.thought]),
        group[0][0].learned,
    )


def check_turns(turns: list[Turn], paths: list[str], *, learned: bool = True) -> None:
    """Check the order of roles, and that no turn is empty. `paths` has each turn's path in the row. In a row to learn,
    every call has a response and no reply is empty; in a request the template decides. Raises RowFault."""
    if len(turns) > MAX_TURNS:
        raise RowFault("", f"{len(turns):,} turns", f"at most {MAX_TURNS:,} turns", "split the conversation")
    previous = ""
    for index, turn in enumerate(turns):
        role, path = turn.role, paths[index]
        if role == "system":
            if index:
                raise RowFault(path, "a system turn after others", "the system turn first", "move it to the front")
            continue
        if role == "tool":
            _check_responses(turn, turns[index - 1] if index else None, path, is_complete=learned)
        elif role == "user" and learned and index and turns[index - 1].calls:
            seen = "a user turn where the answer to a function call is due"
            raise RowFault(path, seen, "the function's response", "add the response, or remove the call")
        elif role == "model" and not previous and learned:
            raise RowFault(path, "a model turn first", "a user turn first", "put the user's prompt before the reply")
        if (not turn.text or turn.text.isspace()) and _is_silent(turn, learned):
            raise RowFault(path, "a turn without text", "text or a function call", "fill in the text or drop the row")
        previous = role
    if not previous:
        raise RowFault(paths[0] if paths else "", "no user turn", "at least one user turn", "add the prompt")


def check_question(turns: list[Turn], paths: list[str]) -> None:
    """`check_turns` for a conversation that waits for the model. Raises RowFault."""
    check_turns(turns, paths, learned=False)
    if turns[-1].role == "model":
        raise RowFault(paths[-1], "a model turn at the end", "a user turn at the end", "end with what to answer")


def _is_silent(turn: Turn, learned: bool) -> bool:
    """Whether a turn has no text, or only white space, which is nothing to learn. In a request white space counts, and
    a reply may be empty: the model ended at once."""
    if learned:
        return not turn.calls and turn.role != "tool"
    return not turn.text and turn.role == "user"


def _check_responses(turn: Turn, before: Turn | None, path: str, *, is_complete: bool) -> None:
    if before is None or not before.calls:
        expected = "a model turn with the call before it"
        raise RowFault(path, "a function response without a call", expected, "add the call")
    names = {call.name for call in before.calls}
    for response in turn.responses:
        if response.name not in names:
            seen = f"a response of {describe(response.name)}"
            raise RowFault(path, seen, f"a response of {' or '.join(sorted(names))}", "answer the call that was made")
    if is_complete and len(turn.responses) != len(before.calls):
        seen = f"{len(turn.responses)} responses to {len(before.calls)} calls"
        raise RowFault(path, seen, "one response for each call", "answer every call once, in one turn")


def checked_json(value: Any, path: str, depth: int = 0) -> Any:
    """Free JSON for prompts. A number without a fraction becomes an integer: some of Google's clients write 3 as 3.0.
    Raises RowFault for too many levels and for a number that lost digits when it was parsed."""
    if depth > MAX_DEPTH:
        raise RowFault(path, f"more than {MAX_DEPTH} levels of nesting", "a flatter object", "flatten the value")
    if isinstance(value, dict):
        return {
            key: checked_json(inner, f"{path}.{key}" if depth < 4 else path, depth + 1) for key, inner in value.items()
        }
    if isinstance(value, list):
        return [
            checked_json(inner, f"{path}[{index}]" if depth < 4 else path, depth + 1)
            for index, inner in enumerate(value)
        ]
    if not isinstance(value, float) or not value.is_integer():
        return value
    if abs(value) >= 2**63:
        raise RowFault(path, f"the number {value:.0f}", "an integer of at most 64 bits", "write it as a string")
    return int(value)


def refuse_media(part: dict[str, Any], path: str) -> None:
    """Refuse a part by its kind of file; text models support none."""
    for key, what in MEDIA.items():
        if part.get(key) is not None:
            blob = part[key] if isinstance(part[key], dict) else {}
            mime = blob.get("mimeType") or blob.get("mime_type") or ""
            kind = KINDS.get(str(mime).split("/")[0], "a document" if mime else what)
            seen = f"{kind} ({mime})" if mime else kind
            raise RowFault(f"{path}.{key}", seen, "text, a function call or a response", "a text model takes no files")
