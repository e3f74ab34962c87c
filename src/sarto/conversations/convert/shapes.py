"""From the columns of a row to a line of the output, for each shape of data. Raises RowFault with the column."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

import orjson

from sarto.conversations.chat_rows import join_messages, read_functions, read_messages
from sarto.conversations.conversation import RowFault, Turn, check_question, check_turns
from sarto.conversations.convert.faults import MOST_LINE_BYTES, seen
from sarto.conversations.convert.gemini import Tools, gemini_row, preference_row
from sarto.conversations.convert.mapping import ColumnMapping
from sarto.conversations.convert.places import place
from sarto.conversations.examples import parse_examples
from sarto.conversations.gemini_rows import ROW_KEYS, read_contents_row
from sarto.conversations.json_text import read_json_text

Columns = Mapping[str, Any]
Convert = Callable[[Columns], dict[str, Any]]
JOINT = "\n\n"
SPEAKERS = {
    "system": "system", "developer": "system",
    "human": "user", "user": "user", "prompter": "user",
    "gpt": "assistant", "assistant": "assistant", "model": "assistant", "bot": "assistant", "chatgpt": "assistant",
    "bing": "assistant", "bard": "assistant",
    "function_call": "call", "tool_call": "call",
    "observation": "tool", "tool": "tool", "tool_response": "tool", "function_response": "tool",
}  # fmt: skip
"""Names of the speakers in `turns` rows."""


class Roles:
    """The places of a mapping's roles."""

    def __init__(self, mapping: ColumnMapping) -> None:
        self.names = {role: " + ".join(names) for role, names in mapping.columns.items()}
        self._places = {role: [(name, place(name)) for name in names] for role, names in mapping.columns.items()}
        self._system_text = mapping.system_text

    def value(self, row: Columns, role: str) -> Any:
        """The value of the first column of a role that has one; None for a role without a column."""
        for _, read in self._places.get(role, ()):
            value = read(row)
            if value is not None and value != "":
                return value
        return None

    def text(self, row: Columns, role: str) -> str:
        """The text of a role; several columns are joined by an empty line."""
        texts = [as_text(read(row), name) for name, read in self._places.get(role, ())]
        return texts[0] if len(texts) == 1 else JOINT.join(text for text in texts if text.strip())

    def system(self, row: Columns) -> str:
        """The system text of a row: its own, or that of the mapping."""
        own = self.text(row, "system") if "system" in self._places else ""
        return own if own.strip() else self._system_text

    def tools(self, row: Columns) -> Tools:
        if "tools" not in self._places:
            return ()
        name, value = self.names["tools"], parsed(self.value(row, "tools"), self.names["tools"])
        if isinstance(value, list):  # also declarations without OpenAI's frame
            value = [{"type": "function", "function": each} if _is_bare(each) else each for each in value]
        with _under(name, "tools"):
            return read_functions(value or None)


def _is_bare(tool: object) -> bool:
    return isinstance(tool, dict) and "function" not in tool and "name" in tool


def line_of(mapping: ColumnMapping) -> Callable[[Columns], bytes]:
    """The conversion of a row to a line of JSON with its end. Raises RowFault."""
    convert = SHAPE_CONVERTERS[mapping.shape](mapping)

    def line(row: Columns) -> bytes:
        made = convert(row)
        try:
            written = orjson.dumps(made, option=orjson.OPT_APPEND_NEWLINE)
        except TypeError as error:
            raise RowFault("", f"a value without a form in JSON ({error})", "text and numbers", "convert it") from None
        if len(written) > MOST_LINE_BYTES:
            raise RowFault("", f"a row of {len(written):,} bytes", f"at most {MOST_LINE_BYTES:,}", "shorten or drop it")
        return written

    return line


def as_text(value: Any, name: str) -> str:
    """The text of a cell; whole and decimal numbers as they are written. Raises RowFault for anything else."""
    if type(value) is str:
        if "\0" in value:
            raise RowFault(name, "a NUL character", "text without NUL", "remove the character U+0000")
        return value
    if value is None:
        return ""
    if type(value) is int or isinstance(value, Decimal):
        return str(value)
    fix = "write the text of the conversation into this column, or name another one"
    if isinstance(value, float):
        fix = "write it in quotes, or store the column as text"
    raise RowFault(name, seen(value), "text", fix)


def parsed(value: Any, name: str) -> Any:
    """A list or an object, also one written as JSON in a cell of text."""
    if not isinstance(value, str):
        return value
    if not value.strip():
        return None
    try:
        return read_json_text(value.encode())
    except ValueError:
        hint = "JSON has double quotes, not single ones" if value.lstrip().startswith(("[{'", "{'")) else "write JSON"
        raise RowFault(name, seen(value), "a list as JSON", hint) from None


class _under:
    """Errors of a reader of OpenAI's rows with the name of the column instead of the field's."""

    def __init__(self, column: str, field: str) -> None:
        self._column, self._field = column, field

    def __enter__(self) -> None:
        return None

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, RowFault) and error.path.startswith(self._field):
            error.path = self._column + error.path.removeprefix(self._field)


def _of_columns(mapping: ColumnMapping) -> Convert:
    roles = Roles(mapping)
    source, target = roles.names["input"], roles.names["output"]

    def convert(row: Columns) -> dict[str, Any]:
        given, reply = roles.value(row, "input"), roles.value(row, "output")
        if is_messages(given) or is_messages(reply):
            replies = as_messages(reply, target, "assistant")
            if len(replies) == 1:
                with _under(target, "messages"):
                    read_messages(replies)
            messages = [*as_messages(given, source, "user"), *replies]
            return _conversation(messages, row, roles, source)
        question, answer = roles.text(row, "input"), roles.text(row, "output")
        for name, text in ((source, question), (target, answer)):
            if not text or text.isspace():
                raise RowFault(name, "no text", "text", "fill it in, drop the row, or filter by non_empty")
        turns = [Turn("user", question), Turn("model", answer)]
        system = roles.system(row)
        return gemini_row([Turn("system", system), *turns] if system.strip() else turns, roles.tools(row))

    return convert if mapping.columns.keys() & {"system", "tools"} else _plainly(mapping, source, target, convert)


def _plainly(mapping: ColumnMapping, source: str, target: str, otherwise: Convert) -> Convert:
    """The same rows as `otherwise` makes, several times faster where both columns have plain text."""
    system = {"systemInstruction": {"parts": [{"text": mapping.system_text}]}} if mapping.system_text.strip() else {}

    def convert(row: Columns) -> dict[str, Any]:
        question, answer = row.get(source), row.get(target)
        if not (_is_plain(question) and _is_plain(answer)):
            return otherwise(row)
        asked = {"role": "user", "parts": [{"text": question}]}
        return {**system, "contents": [asked, {"role": "model", "parts": [{"text": answer}]}]}

    return convert


def _is_plain(value: Any) -> bool:
    """Whether a cell has text that is no list of messages."""
    return type(value) is str and value != "" and value[0] != "[" and not value.isspace() and "\0" not in value


def is_messages(value: object) -> bool:
    """Whether a cell holds messages rather than text."""
    if isinstance(value, str):
        return value.startswith(("[{", "[ {")) and '"role"' in value
    first = value[0] if isinstance(value, list) and value else value
    return isinstance(first, dict) and "role" in first


def as_messages(value: Any, name: str, role: str) -> list[Any]:
    """Messages of a cell: those it has, or one with its text."""
    if is_messages(value):
        value = parsed(value, name)
        return value if isinstance(value, list) else [value]
    text = as_text(value, name)
    return [{"role": role, "content": text}] if text else []


def _of_messages(mapping: ColumnMapping) -> Convert:
    roles = Roles(mapping)
    name = roles.names["messages"]

    def convert(row: Columns) -> dict[str, Any]:
        messages = parsed(roles.value(row, "messages"), name)
        if isinstance(messages, list) and any(
            isinstance(each, dict) and each.get("weight") is not None for each in messages
        ):
            return _weighted(messages, row, roles, name)
        return _conversation(messages, row, roles, name)

    return convert


def _conversation(messages: Any, row: Columns, roles: Roles, name: str) -> dict[str, Any]:
    turns = _turns(messages, row, roles, name)
    if turns[-1].role != "model":
        seen_last = f"a {turns[-1].role} turn at the end"
        raise RowFault(name, seen_last, "a turn of the model at the end", "add the reply to learn, or drop the row")
    return gemini_row(turns, roles.tools(row))


def _turns(messages: Any, row: Columns, roles: Roles, name: str, *, learned: bool = True) -> list[Turn]:
    """Checked turns, with the mapping's system text where the row has none."""
    with _under(name, "messages"):
        turns, paths = join_messages(*read_messages(messages))
        system = roles.system(row)
        if system.strip() and not (turns and turns[0].role == "system"):
            turns, paths = [Turn("system", system), *turns], ["messages", *paths]
        if learned:
            check_turns(turns, paths)
        else:
            check_question(turns, paths)
    return turns


def _weighted(messages: list[Any], row: Columns, roles: Roles, name: str) -> dict[str, Any]:
    """A conversation with weights stays in OpenAI's form, since Gemini's has no field for them."""
    kept = [_without_nulls(each) for each in messages]
    tools = [{"type": "function", "function": each} for each in roles.tools(row)]
    written = {"messages": kept, **({"tools": tools} if tools else {})}
    with _under(name, "messages"):
        parse_examples(orjson.dumps(written), 0)
    system = roles.system(row)
    if system.strip() and not any(each.get("role") in ("system", "developer") for each in kept):
        written["messages"] = [{"role": "system", "content": system}, *kept]
    return written


def _without_nulls(message: Any) -> Any:
    return {key: each for key, each in message.items() if each is not None} if isinstance(message, dict) else message


def _of_turns(mapping: ColumnMapping) -> Convert:
    roles = Roles(mapping)
    name, role_key, text_key = (roles.names[each] for each in ("messages", "role", "text"))

    def convert(row: Columns) -> dict[str, Any]:
        turns = parsed(roles.value(row, "messages"), name)
        if not isinstance(turns, list) or not turns:
            raise RowFault(name, seen(turns), "a list of turns", "fill it in, drop the row, or filter by non_empty")
        messages = [_message(turn, f"{name}[{index}]", role_key, text_key) for index, turn in enumerate(turns)]
        return _conversation(messages, row, roles, name)

    return convert


def _message(turn: Any, where: str, role_key: str, text_key: str) -> dict[str, Any]:
    """A turn with a speaker and a text as a message of OpenAI's form."""
    if not isinstance(turn, dict):
        raise RowFault(where, seen(turn), f"an object with {role_key} and {text_key}", "write it as an object")
    speaker = turn.get(role_key)
    role = SPEAKERS.get(speaker.lower()) if isinstance(speaker, str) else None
    if role is None:
        known = ", ".join(sorted(SPEAKERS))
        raise RowFault(f"{where}.{role_key}", seen(speaker), f"one of {known}", "rename the speaker")
    if turn.get("weight") not in (None, 1):
        fix = "remove it, or write the row as OpenAI messages with weight"
        raise RowFault(f"{where}.weight", seen(turn["weight"]), "no weight in this shape", fix)
    value = turn.get(text_key)
    if role == "call":
        return {"role": "assistant", "tool_calls": _calls(value, f"{where}.{text_key}")}
    if role == "tool" and isinstance(value, dict | list):
        value = orjson.dumps(value).decode()
    return {"role": role, "content": as_text(value, f"{where}.{text_key}")}


def _calls(value: Any, where: str) -> list[dict[str, Any]]:
    calls = parsed(value, where)
    found = calls if isinstance(calls, list) else [calls]
    for call in found:
        if not isinstance(call, dict) or "name" not in call or set(call) - {"name", "arguments"}:
            raise RowFault(where, seen(call), "an object with name and arguments", "write the call so")
    return [{"type": "function", "function": call} for call in found]


def _of_gemini(mapping: ColumnMapping) -> Convert:
    def convert(row: Columns) -> dict[str, Any]:
        known = {
            key: parsed(value, key) if key != "systemInstruction" and isinstance(value, str) else value
            for key, value in row.items()
            if (key in ROW_KEYS or key == "completions") and value is not None and value != ""
        }
        if mapping.system_text and not known.keys() & {"systemInstruction", "system_instruction"}:
            known["systemInstruction"] = {"parts": [{"text": mapping.system_text}]}
        if "completions" in known:
            parse_examples(orjson.dumps(known), 0, data_format="preference")
            return known
        turns, paths, tools = read_contents_row(known)
        check_turns(turns, paths)
        if turns[-1].role != "model":
            raise RowFault(paths[-1], f"a {turns[-1].role} turn at the end", "a model turn there", "add the reply")
        return gemini_row(turns, tools)

    return convert


def _of_preference(mapping: ColumnMapping) -> Convert:
    roles = Roles(mapping)
    names = [roles.names.get(role, role) for role in ("input", "chosen", "rejected")]

    def convert(row: Columns) -> dict[str, Any]:
        given = as_messages(roles.value(row, "input"), names[0], "user")
        chosen = as_messages(roles.value(row, "chosen"), names[1], "assistant")
        rejected = as_messages(roles.value(row, "rejected"), names[2], "assistant")
        shared = _shared(chosen, rejected)
        if shared and given and not _is_in(given, shared):
            seen_prompt = "another prompt than the one that both replies begin with"
            raise RowFault(names[0], seen_prompt, "the same prompt", "leave one of the two out")
        given = shared or given
        if not given:
            raise RowFault(names[0], "no prompt", "a prompt", "name its column, or begin both replies with it")
        replies = [_reply(each[len(shared) :], name) for each, name in ((chosen, names[1]), (rejected, names[2]))]
        if (replies[0].text, replies[0].thought) == (replies[1].text, replies[1].thought):
            raise RowFault(names[2], "the text of the chosen reply again", "another reply", "leave the row out")
        turns = _turns(given, row, roles, names[0] if "input" in roles.names else names[1], learned=False)
        return preference_row(turns, roles.tools(row), *replies)

    return convert


def _is_in(prompt: list[Any], shared: list[Any]) -> bool:
    """Whether a prompt is the one that replies begin with: the same messages, or its last text the last one there."""
    ends = [each.get("content") if isinstance(each, dict) else None for each in (prompt[-1], shared[-1])]
    return shared[: len(prompt)] == prompt or ends[0] == ends[1]


def _shared(chosen: list[Any], rejected: list[Any]) -> list[Any]:
    """The messages that both begin with, which are the prompt."""
    count = 0
    for one, other in zip(chosen[:-1], rejected[:-1], strict=False):
        if one != other:
            break
        count += 1
    return chosen[:count]


def _reply(messages: list[Any], name: str) -> Turn:
    if len(messages) != 1:
        raise RowFault(name, f"{len(messages)} messages behind the prompt", "one reply of the model", "write one reply")
    with _under(name, "messages[0]"):
        turns, _ = read_messages(messages)
    if turns[0].role != "model" or turns[0].calls or not turns[0].text.strip():
        raise RowFault(name, "no reply with text" if turns[0].role == "model" else f"a {turns[0].role} message",
                       "a reply of the model with text", "fill it in or leave the row out")  # fmt: skip
    return turns[0]


SHAPE_CONVERTERS: dict[str, Callable[[ColumnMapping], Convert]] = {
    "columns": _of_columns,
    "messages": _of_messages,
    "turns": _of_turns,
    "gemini": _of_gemini,
    "preference": _of_preference,
}
