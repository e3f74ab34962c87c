"""One line of a dataset into a typed example, or a RowFault that says where and why not.

Every format Sarto reads meets here; each ends in the same `Example`. Control checks the first rows with it, the engine
every row, and serving reads its requests through `read_conversation`. No torch, and no pydantic, so that a million
rows pass in seconds.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from sarto.schema.contents import ROW_KEYS, read_contents_row
from sarto.schema.messages import read_messages_row
from sarto.schema.turns import Call, Response, Role, RowFault, Turn, check_turns, describe

__all__ = [
    "Call", "DataFormat", "Example", "PreferenceExample", "Response", "Role", "RowFault", "Turn", "parse_line",
    "parse_preference_line", "read_conversation", "read_row", "translation_prompt",
]  # fmt: skip

DataFormat = Literal["auto", "translation"]
BOM = b"\xef\xbb\xbf"
OTHER_FILES = {
    b"\x1f\x8b": "a gzip file",
    b"PK\x03\x04": "a zip file",
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
    b"BZh": "a bzip2 file",
    b"\x28\xb5\x2f\xfd": "a zstd file",
    b"%PDF": "a PDF document",
}
"""By how the first line begins."""
PAIRS = (("input_text", "output_text"), ("prompt", "completion"))
KNOWN_FORMATS = '"contents", "messages", "input_text" with "output_text", or "prompt" with "completion"'


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation to learn or to continue. `line` is 1-based, 0 for a request; `format` names where it came from."""

    turns: tuple[Turn, ...]
    tools: tuple[dict[str, Any], ...] = ()
    line: int = 0
    format: str = "contents"


@dataclass(frozen=True, slots=True)
class PreferenceExample:
    """A prompt with the reply that was preferred and the one that was not."""

    prompt: Example
    chosen: Turn
    rejected: Turn

    @property
    def line(self) -> int:
        return self.prompt.line


def parse_line(raw: bytes, line: int, *, data_format: DataFormat = "auto") -> Example:
    """The example of one supervised row; it ends with a model turn that has text or a call. Raises RowFault."""
    try:
        row = read_row(raw, line)
        if "contents" in row and "completions" not in row:
            turns, paths, tools = read_contents_row(row)
            kind = "contents"
        elif "messages" in row:
            turns, paths, tools = read_messages_row(row)
            kind = "messages"
        else:
            turns, paths, kind = _read_pair(row)
            tools = ()
        if data_format == "translation":
            turns, kind = _translation(row, turns), "translation"
        check_turns(turns, paths)
        _check_ends_with_reply(turns[-1], paths[-1])
    except RowFault as fault:
        fault.line = line
        raise
    return Example(tuple(turns), tools, line, kind)


def parse_preference_line(raw: bytes, line: int) -> PreferenceExample:
    """A prompt ending with a user turn, and two scored completions, 1 for the preferred one, 0 for the other."""
    try:
        row = read_row(raw, line)
        completions = row.pop("completions", None)
        if not isinstance(completions, list) or len(completions) != 2:
            raise RowFault("completions", describe(completions), "exactly two completions", "give two scored replies")
        scored = [_read_completion(item, f"completions[{index}]") for index, item in enumerate(completions)]
        if scored[0][0] == scored[1][0]:
            seen = f"two completions with score {scored[0][0]:g}"
            raise RowFault("completions", seen, "one with score 1 and one with score 0", "score the preferred one 1")
        prompt = read_conversation(row, line)
    except RowFault as fault:
        fault.line = line
        raise
    scored.sort(key=lambda pair: pair[0])
    return PreferenceExample(prompt, chosen=scored[1][1], rejected=scored[0][1])


def read_conversation(row: dict[str, Any], line: int = 0) -> Example:
    """A prompt in Gemini's form, `contents` ending with a user turn or function responses. Raises RowFault."""
    turns, paths, tools = read_contents_row(row)
    check_turns(turns, paths, alternating=False)
    if turns[-1].role == "model":
        raise RowFault(paths[-1], "a model turn at the end", "a user turn at the end", "end with what to answer")
    return Example(tuple(turns), tools, line, "contents")


def read_row(raw: bytes, line: int) -> dict[str, Any]:
    """Strict JSON, one object. Raises RowFault."""
    if line == 1 and raw.startswith(BOM):
        raw = raw[3:]
    try:
        row = orjson.loads(raw)
    except ValueError as error:
        raise _json_fault(raw, error, line) from None
    if type(row) is not dict:
        raise RowFault("", describe(row), "a JSON object", "write one object per line")
    try:
        if b"\\u0000" in raw and _has_nul(row):
            raise RowFault("", "a NUL character", "text without NUL", "remove the character U+0000")
        if _may_repeat_keys(raw, row):
            _refuse_duplicate_keys(raw)
    except RecursionError:
        raise RowFault("", "hundreds of levels of nesting", "a flat object", "flatten the row") from None
    return row


def translation_prompt(source_language: str, text: str, target_language: str) -> str:
    """The one user turn of a translation, for training rows and for the translation API alike."""
    return f"{source_language}: {text} {target_language}:"


def _json_fault(raw: bytes, error: ValueError, line: int) -> RowFault:
    kind = next((name for start, name in OTHER_FILES.items() if line == 1 and raw.startswith(start)), None)
    if kind is not None:
        return RowFault("", kind, "a text file of JSON lines", "unpack or convert the file first")
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return RowFault("", "UTF-16 text", "UTF-8 text", "save the file as UTF-8")
    if b"\x00" in raw:
        return RowFault("", "a NUL byte", "UTF-8 text", "remove the byte, or save the file as UTF-8")
    if raw.startswith(BOM):
        return RowFault("", "a byte order mark inside the file", "none", "remove it; joined files often carry one")
    if not raw.strip():
        return RowFault("", "an empty line", "a JSON object", "remove the line")
    try:
        raw.decode()
    except UnicodeDecodeError as wrong:
        near = describe(raw[max(0, wrong.start - 20) : wrong.start + 20].decode("utf-8", "replace"))
        seen = f"the byte 0x{raw[wrong.start]:02X} at byte {wrong.start + 1}, near {near}"
        return RowFault("", seen, "UTF-8 text", "save the file as UTF-8; it looks like another encoding")
    reason = str(error).split(": line ")[0]
    position = getattr(error, "pos", 0)
    seen = raw.decode("utf-8", "replace")[max(0, position - 20) : position + 20].strip()
    fix = f"{reason} at character {position + 1}"
    return RowFault("", f"broken JSON near {describe(seen)}", "one JSON object per line, in UTF-8", fix + _hint(raw))


def _hint(raw: bytes) -> str:
    """What most often makes such a line."""
    text = raw.strip()
    if text in (b"[", b"]", b"{", b"}") or text.endswith((b",", b"[", b"{")):
        return "; write each example on one line of its own, not a pretty-printed file"
    if re.search(rb"\}\s*\{\s*\"", text):
        return "; write each example on one line of its own"
    if text.startswith((b"{'", b"[{'")):
        return "; JSON has double quotes, not single ones"
    if any(word in text for word in (b"NaN", b"Infinity")):
        return "; NaN and Infinity are not JSON"
    return ""


def _has_nul(value: object) -> bool:
    if isinstance(value, str):
        return "\0" in value
    if isinstance(value, dict):
        return any("\0" in key or _has_nul(inner) for key, inner in value.items())
    return isinstance(value, list) and any(_has_nul(inner) for inner in value)


def _may_repeat_keys(raw: bytes, row: dict[str, Any]) -> bool:
    """A key shows as `":` in the bytes and an escaped quote inside text as `\\":`, so equal counts exclude repeats,
    unless white space in front of a colon hides some keys from the count."""
    if b" :" in raw or b"\t:" in raw or b"\r:" in raw:
        return True
    return raw.count(b'":') - raw.count(b'\\":') != _count_keys(row)


def _count_keys(row: dict[str, Any]) -> int:
    count = 0
    values: list[Any] = [row]
    for value in values:  # grows while it is read
        if type(value) is dict:
            count += len(value)
            value = value.values()
        values += [inner for inner in value if type(inner) is dict or type(inner) is list]
    return count


def _refuse_duplicate_keys(raw: bytes) -> None:
    def check(pairs: list[tuple[str, Any]]) -> None:
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise RowFault(key, "the same key twice in one object", "each key once", "remove one of the two")
            seen.add(key)

    json.loads(raw, object_pairs_hook=check)


def _read_pair(row: dict[str, Any]) -> tuple[list[Turn], list[str], str]:
    """`input_text`/`output_text` and `prompt`/`completion`."""
    if "completions" in row:
        fix = "use preference tuning for pairs, or give the reply to learn as the last turn"
        raise RowFault("completions", "a preference pair", "a supervised example", fix)
    for source, target in PAIRS:
        if source not in row and target not in row:
            continue
        for key in row:
            if key not in (source, target) and row[key] is not None:
                raise RowFault(key, "an unknown field", f"only {source} and {target}", f'remove "{key}"')
        for key in (source, target):
            text = row.get(key)
            if not isinstance(text, str) or not text.strip():
                seen = "no text" if isinstance(text, str) else describe(text)
                raise RowFault(key, seen, "text", "fill it in or drop the row")
        return [Turn("user", row[source]), Turn("model", row[target])], [source, target], source
    if ROW_KEYS.intersection(row):
        raise RowFault("contents", "no contents", "a list of turns", "write the turns of the conversation")
    raise RowFault("", describe(row), KNOWN_FORMATS, "use one of these formats")


def _translation(row: dict[str, Any], turns: list[Turn]) -> list[Turn]:
    """Three pieces (source language, text, target language) become the one prompt; a row that has it already stays."""
    if [turn.role for turn in turns] != ["user", "model"]:
        raise RowFault("contents", f"{len(turns)} turns", "one user turn and one model turn", "split the row")
    contents = row.get("contents")
    if not isinstance(contents, list):
        return turns
    pieces = [part.get("text") for part in contents[0]["parts"]]
    if len(pieces) == 1:
        return turns
    if len(pieces) != 3 or not all(isinstance(piece, str) and piece.strip() for piece in pieces):
        wanted = "three parts: source language, text, target language"
        raise RowFault("contents[0].parts", f"{len(pieces)} parts", wanted, "give the three pieces in a row")
    source, text, target = (str(piece).strip() for piece in pieces)
    return [Turn("user", translation_prompt(source.rstrip(":"), text, target.rstrip(":"))), turns[1]]


def _check_ends_with_reply(last: Turn, path: str) -> None:
    if last.role != "model":
        raise RowFault(path, f"a {last.role} turn at the end", "a model turn at the end", "add the reply to learn")
    if not last.text.strip() and not last.calls:
        raise RowFault(path, "a reply without text", "text or a function call", "fill in the reply or drop the row")


def _read_completion(item: object, path: str) -> tuple[float, Turn]:
    if not isinstance(item, dict) or set(item) != {"score", "completion"}:
        raise RowFault(path, describe(item), "an object with score and completion", "write it that way")
    score = item["score"]
    if isinstance(score, bool) or not isinstance(score, int | float) or score not in (0, 1):
        raise RowFault(f"{path}.score", describe(score), "1 for the preferred reply, 0 for the other", "score them so")
    reply = read_reply(item["completion"], f"{path}.completion")
    return float(score), reply


def read_reply(content: object, path: str) -> Turn:
    """A model turn that stands alone. Raises RowFault."""
    from_row = {"contents": [{"role": "user", "parts": [{"text": "?"}]}, content]}
    try:
        turns, paths, _ = read_contents_row(from_row)
        _check_ends_with_reply(turns[-1], paths[-1])
    except RowFault as fault:
        fault.path = path + fault.path.removeprefix("contents[1]")
        raise
    if len(turns) != 2:
        raise RowFault(path, "several turns", "one model turn", "give the reply alone")
    return turns[-1]
