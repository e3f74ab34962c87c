"""Parses one line of a dataset into a typed example, or raises a RowFault with its position and reason.

All formats are parsed here into the same `Example`. Control checks the first rows with it, the engine every row, and
serving reads its requests through `read_conversation`. No torch and no pydantic, so that a million rows take seconds.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from sarto.conversations.chat_rows import read_messages, read_messages_row
from sarto.conversations.conversation import (
    FunctionCall,
    FunctionResponse,
    Role,
    RowFault,
    Turn,
    check_question,
    check_turns,
    describe,
)
from sarto.conversations.gemini_rows import ROW_KEYS, listed, read_contents_row
from sarto.conversations.json_text import RepeatedKey, TooDeep, read_json_text

__all__ = [
    "DataFormat",
    "Example",
    "FunctionCall",
    "FunctionResponse",
    "Role",
    "RowFault",
    "Turn",
    "parse_examples",
    "parse_line",
    "read_conversation",
    "read_row",
    "references_of",
    "translation_prompt",
]  # fmt: skip

DataFormat = Literal["auto", "translation", "preference", "prompts", "reinforcement"]
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
"""Kinds of files that are not JSON lines, by the start of the first line."""
PREFERRED = (("preferred_output", "non_preferred_output"), ("preferred_completion", "non_preferred_completion"))
"""OpenAI's names for the better and the worse reply; the second pair is the older one."""
Prompt = tuple[list[Turn], list[str], tuple[dict[str, Any], ...]]
"""Turns, the path of each, and tools."""
ScoredPair = tuple[tuple[Turn, str], tuple[Turn, str]]
"""The preferred reply with its path, and the other one."""
PAIRS = (("input_text", "output_text"), ("prompt", "completion"))
WITH_REPLY = " with a reply"
"""Ends the format of a prompt whose row has a reply too."""
KNOWN_FORMATS = '"contents", "messages", "input_text" with "output_text", or "prompt" with "completion"'


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation to learn or to continue. `line` is 1-based, 0 for a request; `format` is its wire format."""

    turns: tuple[Turn, ...]
    tools: tuple[dict[str, Any], ...] = ()
    line: int = 0
    format: str = "contents"
    last_reply_only: bool = False
    """Only the last turn is learned; earlier replies are part of the prompt."""
    masked: tuple[int, ...] = ()
    """Replies that are not learned, counted from 0 among the replies."""


def parse_line(raw: bytes, line: int, *, data_format: DataFormat = "auto") -> Example:
    """The first example of a row, for evaluation and reports. It ends with a model turn that has text or a call, except
    for prompts. Raises RowFault."""
    return parse_examples(raw, line, data_format=data_format)[0]


def parse_examples(raw: bytes, line: int, *, data_format: DataFormat = "auto") -> tuple[Example, ...]:
    """All examples of one row, each in the form of `parse_line`. Raises RowFault."""
    return READERS[data_format](raw, line)


def _read_reply(raw: bytes, line: int, *, is_translation: bool = False) -> tuple[Example]:
    """One conversation, whose last turn is the reply to learn."""
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
        if is_translation:
            turns, kind = _translation(row, turns), "translation"
        check_turns(turns, paths)
        if turns[-1].role != "model":
            seen = f"a {turns[-1].role} turn at the end"
            raise RowFault(paths[-1], seen, "a model turn at the end", "add the reply to learn")
        masked = _masked(turns) if kind == "messages" else ()
    except RowFault as fault:
        fault.line = line
        raise
    return (Example(tuple(turns), tools, line, kind, masked=masked),)


def _masked(turns: list[Turn]) -> tuple[int, ...]:
    """The numbers of the replies with weight 0. Raises RowFault if those are all."""
    learned = [turn.learned for turn in turns if turn.role == "model"]
    if not any(learned):
        seen = "weight 0 on every reply"
        raise RowFault("messages", seen, "a reply to learn", "remove the weight of one reply, or the row")
    return tuple(number for number, is_learned in enumerate(learned) if not is_learned)


def _read_pair_of_replies(raw: bytes, line: int) -> tuple[Example, Example]:
    """A prompt that waits for the model, continued by the preferred reply, and by the other one."""
    try:
        row = read_row(raw, line)
        is_openai = any(names[0] in row for names in PREFERRED)
        (turns, paths, tools), pair = _openai_pair(row) if is_openai else _scored_pair(row)
        check_question(turns, paths)
        (chosen, where), (rejected, _) = pair
        for turn, path in (*zip(turns, paths, strict=True), *pair):
            if not turn.learned:
                seen = "weight 0 in a preference pair"
                raise RowFault(path, seen, "no weight: only the two replies are compared", "remove it")
        if (chosen.text, chosen.thought) == (rejected.text, rejected.thought):
            raise RowFault(where, "the same text twice", "two different replies", "leave the row out")
    except RowFault as fault:
        fault.line = line
        raise
    kind, prompt = "messages" if is_openai else "contents", tuple(turns)
    return (
        Example((*prompt, chosen), tools, line, kind, last_reply_only=True),
        Example((*prompt, rejected), tools, line, kind, last_reply_only=True),
    )


def _read_prompt(raw: bytes, line: int) -> tuple[Example]:
    """A conversation that waits for the model; a reply at its end is left out."""
    try:
        row = read_row(raw, line)
        kind, tools = "contents", tuple[dict[str, Any], ...]()
        if "contents" in row and "completions" not in row:
            turns, paths, tools = read_contents_row(row)
        elif "messages" in row:
            turns, paths, tools = read_messages_row(row)
            kind = "messages"
        elif (name := next((pair[0] for pair in PAIRS if set(row) == {pair[0]}), None)) is not None:
            turns, paths, kind = [Turn("user", _given_text(row, name))], [name], name
        else:
            turns, paths, kind = _read_pair(row)
        check_turns(turns, paths)
        if turns[-1].role == "model":
            turns, kind = turns[:-1], kind + WITH_REPLY
    except RowFault as fault:
        fault.line = line
        raise
    return (Example(tuple(turns), tools, line, kind),)


def _read_rewarded(raw: bytes, line: int) -> tuple[Example]:
    """A prompt whose answers are sampled; its `references` are for the reward."""
    try:
        row = read_row(raw, line)
        references_of(row)
        row.pop("references", None)
        if row.get("tools"):
            raise RowFault("tools", "function declarations", "a row without tools", "leave them out: not built yet")
        turns, paths, tools = read_contents_row(row)
        check_question(turns, paths)
        if turns[-1].role != "user":
            raise RowFault(paths[-1], f"a {turns[-1].role} turn at the end", "a user turn at the end", "end with it")
    except RowFault as fault:
        fault.line = line
        raise
    return (Example(tuple(turns), tools, line, "contents"),)


def references_of(row: dict[str, Any]) -> dict[str, str]:
    """The values of a row for its reward, by their names. Raises RowFault."""
    references = row.get("references")
    if references is None:
        return {}
    if not isinstance(references, dict):
        raise RowFault("references", describe(references), "an object of strings", "write name and value of each")
    for name, value in references.items():
        if not isinstance(value, str):
            raise RowFault(f"references.{name}", describe(value), "a string", "write the value in double quotes")
    return references


READERS: dict[DataFormat, Callable[[bytes, int], tuple[Example, ...]]] = {
    "auto": _read_reply,
    "translation": partial(_read_reply, is_translation=True),
    "preference": _read_pair_of_replies,
    "prompts": _read_prompt,
    "reinforcement": _read_rewarded,
}
"""The parser of a row's examples, by the form of the data; each form returns the same number for every row."""


def read_conversation(row: dict[str, Any], line: int = 0) -> Example:
    """A prompt in Gemini's form, `contents` ending with a user turn or function responses. Raises RowFault."""
    turns, paths, tools = read_contents_row(row)
    check_question(turns, paths)
    return Example(tuple(turns), tools, line, "contents")


def read_row(raw: bytes, line: int) -> dict[str, Any]:
    """Strict JSON, one object. Raises RowFault."""
    if line == 1 and raw.startswith(BOM):
        raw = raw[3:]
    try:
        row = read_json_text(raw)
    except RepeatedKey as error:
        raise RowFault(
            error.key, "the same key twice in one object", "each key once", "remove one of the two"
        ) from None
    except TooDeep as error:
        raise RowFault("", str(error), "a flatter object", "flatten the row") from None
    except ValueError as error:
        raise _json_fault(raw, error, line) from None
    if type(row) is not dict:
        raise RowFault("", describe(row), "a JSON object", "write one object per line")
    if b"\\u0000" in raw and _has_nul(row):
        raise RowFault("", "a NUL character", "text without NUL", "remove the character U+0000")
    return row


def translation_prompt(source_language: str, text: str, target_language: str) -> str:
    """The single user turn of a translation, for training rows and for the translation API."""
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
    """The most frequent cause of such a line."""
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


def _has_nul(row: dict[str, Any]) -> bool:
    values: list[object] = [row]
    for value in values:  # grows while it is read
        if isinstance(value, str) and "\0" in value:
            return True
        if isinstance(value, dict):
            values += [*value, *value.values()]
        elif isinstance(value, list):
            values += value
    return False


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
        texts = [_given_text(row, key) for key in (source, target)]
        return [Turn("user", texts[0]), Turn("model", texts[1])], [source, target], source
    if ROW_KEYS.intersection(row):
        raise RowFault("contents", "no contents", "a list of turns", "write the turns of the conversation")
    raise RowFault("", describe(row), KNOWN_FORMATS, "use one of these formats")


def _given_text(row: dict[str, Any], key: str) -> str:
    text = row.get(key)
    if not isinstance(text, str) or not text.strip():
        seen = "no text" if isinstance(text, str) else describe(text)
        raise RowFault(key, seen, "text", "fill it in or drop the row")
    return text


def _translation(row: dict[str, Any], turns: list[Turn]) -> list[Turn]:
    """Three pieces (source language, text, target language) become the one prompt; a row with that prompt is
    unchanged."""
    if [turn.role for turn in turns] != ["user", "model"]:
        raise RowFault("contents", f"{len(turns)} turns", "one user turn and one model turn", "split the row")
    contents = listed(row.get("contents"))
    if not contents:
        return turns
    pieces = [part.get("text") for part in listed(contents[0]["parts"])]
    if len(pieces) == 1:
        return turns
    if len(pieces) != 3 or not all(isinstance(piece, str) and piece.strip() for piece in pieces):
        expected = "three parts: source language, text, target language"
        raise RowFault("contents[0].parts", f"{len(pieces)} parts", expected, "give the three pieces in a row")
    source, text, target = (str(piece).strip() for piece in pieces)
    return [Turn("user", translation_prompt(source.rstrip(":"), text, target.rstrip(":"))), turns[1]]


def _scored_pair(row: dict[str, Any]) -> tuple[Prompt, ScoredPair]:
    """Gemini's form: `contents`, and two `completions` with the scores 1 and 0, in any order."""
    completions = row.pop("completions", None)
    if not isinstance(completions, list) or len(completions) != 2:
        raise RowFault("completions", describe(completions), "exactly two completions", "give two scored replies")
    prompt = read_contents_row(row)
    scored = [_read_completion(item, f"completions[{index}]") for index, item in enumerate(completions)]
    first, second = scored
    if first[0] == second[0]:
        seen = f"two completions with score {first[0]:g}"
        raise RowFault("completions", seen, "one with score 1 and one with score 0", "score the preferred one 1")
    return prompt, (first[1:], second[1:]) if first[0] > second[0] else (second[1:], first[1:])


def _read_completion(item: object, path: str) -> tuple[float, Turn, str]:
    """Score, reply, and the reply's path."""
    if not isinstance(item, dict):
        raise RowFault(path, describe(item), "an object with score and completion", "write it that way")
    for key in item:
        if key not in ("score", "completion"):
            raise RowFault(f"{path}.{key}", "an unknown field", "only score and completion", f'remove "{key}"')
    score = item.get("score")
    if isinstance(score, bool) or not isinstance(score, int | float) or score not in (0, 1):
        raise RowFault(f"{path}.score", describe(score), "1 for the preferred reply, 0 for the other", "score them so")
    where = f"{path}.completion"
    return float(score), _only_text(read_reply(item.get("completion"), where), where), where


def _openai_pair(row: dict[str, Any]) -> tuple[Prompt, ScoredPair]:
    """OpenAI's form: `input` with `messages`, `preferred_output` and `non_preferred_output`."""
    names = next(each for each in PREFERRED if each[0] in row)
    for key in row:
        if key not in ("input", *names) and row[key] is not None:
            raise RowFault(key, "an unknown field", f"only input, {names[0]} and {names[1]}", f'remove "{key}"')
    conversation = row.get("input")
    if not isinstance(conversation, dict):
        raise RowFault("input", describe(conversation), "an object with messages", "write the prompt as messages")
    conversation = {key: value for key, value in conversation.items() if key != "parallel_tool_calls"}
    return read_messages_row(conversation), (_output(row, names[0]), _output(row, names[1]))


def _output(row: dict[str, Any], name: str) -> tuple[Turn, str]:
    messages = row.get(name)
    if not isinstance(messages, list) or len(messages) != 1:
        raise RowFault(name, describe(messages), "a list of one message of the assistant", "write the reply so")
    turns, _ = read_messages(messages)
    if turns[0].role != "model":
        raise RowFault(f"{name}[0].role", f"a {turns[0].role} turn", "a message of the assistant", "write the reply so")
    return _only_text(turns[0], name), name


def _only_text(reply: Turn, path: str) -> Turn:
    if reply.calls or not reply.text.strip():
        seen = "a function call" if reply.calls else "no text"
        raise RowFault(path, seen, "a reply with text", "fill in the text or leave the row out")
    return reply


def read_reply(content: object, path: str) -> Turn:
    """A single model turn. Raises RowFault."""
    from_row = {"contents": [{"role": "user", "parts": [{"text": "?"}]}, content]}
    try:
        turns, paths, _ = read_contents_row(from_row)
        check_turns(turns, paths)
        if turns[-1].role != "model":
            raise RowFault(paths[-1], f"a {turns[-1].role} turn", "a turn of the model", "give the reply")
    except RowFault as fault:
        fault.path = path + fault.path.removeprefix("contents[1]").removeprefix("contents[0]")
        raise
    if len(turns) != 2:
        raise RowFault(path, "several turns", "one model turn", "give the reply alone")
    return turns[-1]
