"""Turns of a conversation, free of any wire format, and the fault that says what is wrong with a row.

Knows no tokens and no templates. Used by `schema/examples.py`, by control's quick check and by the engine.
"""

from __future__ import annotations

from dataclasses import dataclass
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


class RowFault(Exception):
    """One unusable row: its 1-based line, the JSON path, what was seen there, what is wanted, and how to fix it."""

    def __init__(self, path: str, seen: str, wanted: str, fix: str, line: int = 0) -> None:
        super().__init__(path, seen, wanted, fix, line)
        self.path, self.seen, self.wanted, self.fix, self.line = path, seen, wanted, fix, line

    @property
    def reason(self) -> str:
        """One sentence without the line number, as it stands in `droppedExampleReasons`."""
        where = f"{self.path}: " if self.path else ""
        return f"{where}saw {self.seen}, want {self.wanted}; {self.fix}"

    def __str__(self) -> str:
        return f"line {self.line}: {self.reason}" if self.line else self.reason

    def to_json(self) -> dict[str, Any]:
        return {"line": self.line, "path": self.path, "seen": self.seen, "wanted": self.wanted, "fix": self.fix}


@dataclass(frozen=True, slots=True)
class Call:
    """A function the model asks for; `id` ties a response to it where the format has ids."""

    name: str
    arguments: dict[str, Any]
    id: str = ""


@dataclass(frozen=True, slots=True)
class Response:
    """What a function answered; `content` is a JSON object, or text where the format gives text."""

    name: str
    content: dict[str, Any] | str
    id: str = ""


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn. Only a model's turn has calls or thought, only a tool's turn has responses."""

    role: Role
    text: str = ""
    calls: tuple[Call, ...] = ()
    responses: tuple[Response, ...] = ()
    thought: str = ""


def describe(value: object) -> str:
    """A JSON value in a few words, never more than about 60 characters of it."""
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


def check_turns(turns: list[Turn], paths: list[str], *, alternating: bool = True) -> None:
    """Who speaks after whom. `paths` names each turn in the row. Rows to learn from alternate; a request need not,
    its template decides. Raises RowFault."""
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
            _check_responses(turn, turns[index - 1] if index else None, path, is_complete=alternating)
        elif role == "user" and alternating and index and turns[index - 1].calls:
            seen = "a user turn where the answer to a function call is due"
            raise RowFault(path, seen, "the function's response", "add the response, or remove the call")
        elif role == previous and alternating:
            raise RowFault(path, f"a second {role} turn in a row", "user and model taking turns", "join the two turns")
        elif role == "model" and not previous and alternating:
            raise RowFault(path, "a model turn first", "a user turn first", "put the user's prompt before the reply")
        previous = role
    if not previous:
        raise RowFault(paths[0] if paths else "", "no user turn", "at least one user turn", "add the prompt")


def _check_responses(turn: Turn, before: Turn | None, path: str, *, is_complete: bool) -> None:
    if before is None or not before.calls:
        wanted = "a model turn with the call before it"
        raise RowFault(path, "a function response without a call", wanted, "add the call")
    names = {call.name for call in before.calls}
    for response in turn.responses:
        if response.name not in names:
            seen = f"a response of {describe(response.name)}"
            raise RowFault(path, seen, f"a response of {' or '.join(sorted(names))}", "answer the call that was made")
    if is_complete and len(turn.responses) != len(before.calls):
        seen = f"{len(turn.responses)} responses to {len(before.calls)} calls"
        raise RowFault(path, seen, "one response for each call", "answer every call once, in one turn")


def check_json(value: object, path: str, depth: int = 0) -> None:
    """Refuse free JSON that is nested too deep or holds a number that lost digits when it was read."""
    if depth > MAX_DEPTH:
        raise RowFault(path, f"more than {MAX_DEPTH} levels of nesting", "a flatter object", "flatten the value")
    if isinstance(value, dict):
        for key, inner in value.items():
            check_json(inner, f"{path}.{key}" if depth < 4 else path, depth + 1)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            check_json(inner, f"{path}[{index}]" if depth < 4 else path, depth + 1)
    elif isinstance(value, float) and abs(value) >= 2**63 and value.is_integer():
        raise RowFault(path, f"the number {value:.0f}", "an integer of at most 64 bits", "write it as a string")


def refuse_media(part: dict[str, Any], path: str) -> None:
    """Name the kind of file a part holds; text models take none."""
    for key, what in MEDIA.items():
        if part.get(key) is not None:
            blob = part[key] if isinstance(part[key], dict) else {}
            mime = blob.get("mimeType") or blob.get("mime_type") or ""
            kind = KINDS.get(str(mime).split("/")[0], "a document" if mime else what)
            seen = f"{kind} ({mime})" if mime else kind
            raise RowFault(f"{path}.{key}", seen, "text, a function call or a response", "a text model takes no files")
