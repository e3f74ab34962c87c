"""Gemini's `contents`, `systemInstruction` and `tools` into turns and tool declarations.

Knows one format only; `schema/examples.py` chooses it. Serving reads its requests through the same functions.
"""

from __future__ import annotations

from typing import Any

from sarto.schema.turns import Call, Response, Role, RowFault, Turn, check_json, describe, refuse_media

ROLES: dict[str, Role] = {"user": "user", "model": "model", "assistant": "model", "function": "tool", "tool": "tool"}
ROW_KEYS = frozenset(
    ["contents", "systemInstruction", "system_instruction", "tools", "generationConfig", "generation_config"]
)


def read_contents_row(row: dict[str, Any]) -> tuple[list[Turn], list[str], tuple[dict[str, Any], ...]]:
    """Turns, the path of each, and tools. Raises RowFault."""
    if not ROW_KEYS.issuperset(row):
        name = next(key for key in row if key not in ROW_KEYS)
        wanted = "contents, systemInstruction, tools, generationConfig"
        raise RowFault(name, "an unknown field", f"only {wanted}", f'remove "{name}"')
    _check_generation_config(row)
    turns: list[Turn] = []
    paths: list[str] = []
    read_system(row, turns, paths)
    contents = row.get("contents")
    if type(contents) is not list or not contents:
        raise RowFault("contents", describe(contents), "a list of turns", "write the turns of the conversation")
    count = len(contents)
    for index, content in enumerate(contents):
        path = f"contents[{index}]"
        if type(content) is not dict:
            raise RowFault(path, describe(content), "an object with role and parts", "write the turn as an object")
        turn = _plain_turn(content)
        if turn is not None:
            turns.append(turn)
            paths.append(path)
            continue
        for turn in read_content(content, path, index, count):
            turns.append(turn)
            paths.append(path)
    return turns, paths, read_tools(row.get("tools"), "tools")


def _plain_turn(content: dict[str, Any]) -> Turn | None:
    """The turn of the most frequent shape, one text part and nothing else; None for every other."""
    parts = content.get("parts")
    if len(content) != 2 or type(parts) is not list or len(parts) != 1:
        return None
    part, role = parts[0], content.get("role")
    if type(part) is not dict or len(part) != 1 or (role != "user" and role != "model"):
        return None
    text = part.get("text")
    if type(text) is not str or not text or text.isspace():
        return None
    return Turn("user" if role == "user" else "model", text)


def read_system(row: dict[str, Any], turns: list[Turn], paths: list[str]) -> None:
    """Append the system turn, under whichever of its two names."""
    key = "systemInstruction" if row.get("systemInstruction") is not None else "system_instruction"
    system = row.get(key)
    if system is None:
        return
    if key == "systemInstruction" and row.get("system_instruction") is not None:
        raise RowFault("system_instruction", "the system instruction twice", "it once", "remove one of the two")
    text = system if isinstance(system, str) else "".join(_system_texts(system, key))
    if not text.strip():
        raise RowFault(key, "no text", "the instruction as text", f"fill it in, or remove {key}")
    turns.append(Turn("system", text))
    paths.append(key)


def _system_texts(system: object, path: str) -> list[str]:
    if not isinstance(system, dict) or not isinstance(system.get("parts"), list):
        raise RowFault(path, describe(system), 'an object such as {"parts": [{"text": "…"}]}', "write it that way")
    refuse_unknown(system, ("role", "parts"), path)
    texts = []
    for index, part in enumerate(system["parts"]):
        if isinstance(part, dict):
            refuse_media(part, f"{path}.parts[{index}]")
        if not isinstance(part, dict) or set(part) != {"text"} or not isinstance(part["text"], str):
            raise RowFault(f"{path}.parts[{index}]", describe(part), "a text part", "keep only text here")
        texts.append(part["text"])
    return texts


def refuse_unknown(value: dict[str, Any], known: tuple[str, ...], path: str) -> None:
    """A null counts as absent, anything else under an unknown name is refused."""
    for key in value:
        if key not in known and value[key] is not None:
            raise RowFault(f"{path}.{key}", "an unknown field", f"only {', '.join(known)}", f'remove "{key}"')


def read_content(content: dict[str, Any], path: str, index: int, count: int) -> list[Turn]:
    """One content as one turn; two when a user adds text behind function responses."""
    refuse_unknown(content, ("role", "parts"), path)
    role = _role(content.get("role"), path, index, count)
    parts = content.get("parts")
    if not isinstance(parts, list) or not parts:
        raise RowFault(f"{path}.parts", describe(parts), "a list of parts", "give the turn at least one part")
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[Call] = []
    responses: list[Response] = []
    for number, part in enumerate(parts):
        where = f"{path}.parts[{number}]"
        kind = _part_kind(part, where)
        if kind == "text":
            _read_text(part, where, role, texts, thoughts, bool(calls))
        elif kind == "functionCall":
            calls.append(_read_call(part, where, role))
        else:
            if texts:
                raise RowFault(where, "a function response behind text", "responses first", "move the text behind it")
            responses.append(_read_response(part, where, role))
    text = "".join(texts)
    if not responses:
        if role == "tool":
            raise RowFault(path, "a function turn without response", "functionResponse parts", "use the role user")
        if not text.strip() and not calls:
            raise RowFault(path, "a turn without text", "text or a function call", "fill in the text or drop the row")
        return [Turn(role, text, tuple(calls), (), "".join(thoughts))]
    turns = [Turn("tool", responses=tuple(responses))]
    return [*turns, Turn("user", text)] if text.strip() else turns


def _role(given: object, path: str, index: int, count: int) -> Role:
    """A missing role is clear in a single question and in one exchange; in longer conversations it is a guess."""
    if given is None or given == "":
        if count <= 2:
            return "model" if index else "user"
        raise RowFault(f"{path}.role", "no role", '"user" or "model"', "name who speaks in every turn")
    if isinstance(given, str) and given in ROLES:
        return ROLES[given]
    fix = "put it in systemInstruction" if given == "system" else "use one of these roles"
    raise RowFault(f"{path}.role", describe(given), '"user" or "model"', fix)


def _part_kind(part: object, path: str) -> str:
    if not isinstance(part, dict):
        raise RowFault(path, describe(part), 'an object such as {"text": "…"}', "write the part as an object")
    refuse_media(part, path)
    found = [
        kind
        for kind, names in (
            ("text", ("text",)),
            ("functionCall", ("functionCall", "function_call")),
            ("functionResponse", ("functionResponse", "function_response")),
        )
        if any(part.get(name) is not None for name in names)
    ]
    if len(found) != 1:
        seen = " and ".join(found) or describe(part)
        raise RowFault(path, seen, "exactly one of text, functionCall, functionResponse", "split or fill in the part")
    known = {"text": ("text", "thought"), "functionCall": ("functionCall", "function_call"),
             "functionResponse": ("functionResponse", "function_response")}  # fmt: skip
    refuse_unknown(part, known[found[0]], path)
    return found[0]


def _read_text(
    part: dict[str, Any], path: str, role: Role, texts: list[str], thoughts: list[str], after_call: bool
) -> None:
    text, thought = part["text"], part.get("thought")
    if not isinstance(text, str):
        raise RowFault(f"{path}.text", describe(text), "a string", "write the text as a string")
    if thought is not None and not isinstance(thought, bool):
        raise RowFault(f"{path}.thought", describe(thought), "true or false", "write a boolean")
    if thought and role != "model":
        raise RowFault(f"{path}.thought", "a thought of the user", "thoughts in model turns only", "remove the flag")
    if thought and (texts or after_call):
        raise RowFault(path, "a thought behind the reply", "thoughts first", "move the thought to the front")
    if text and not thought and after_call:
        raise RowFault(path, "text behind a function call", "text first, then calls", "move the text to the front")
    (thoughts if thought else texts).append(text)


def _read_call(part: dict[str, Any], path: str, role: Role) -> Call:
    key = "functionCall" if part.get("functionCall") is not None else "function_call"
    call, where = part[key], f"{path}.{key}"
    if role != "model":
        raise RowFault(where, f"a function call of the {role}", "calls in model turns only", 'set the role to "model"')
    if not isinstance(call, dict):
        raise RowFault(where, describe(call), "an object with name and args", "write the call as an object")
    refuse_unknown(call, ("name", "args", "id"), where)
    return Call(_name(call, where), _object(call.get("args"), f"{where}.args"), _id(call, where))


def _read_response(part: dict[str, Any], path: str, role: Role) -> Response:
    key = "functionResponse" if part.get("functionResponse") is not None else "function_response"
    response, where = part[key], f"{path}.{key}"
    if role == "model":
        raise RowFault(where, "a function response of the model", "responses in user turns", 'set the role to "user"')
    if not isinstance(response, dict):
        raise RowFault(where, describe(response), "an object with name and response", "write it as an object")
    refuse_unknown(response, ("name", "response", "id"), where)
    content = _object(response.get("response"), f"{where}.response")
    return Response(_name(response, where), content, _id(response, where))


def _name(value: dict[str, Any], path: str) -> str:
    name = value.get("name")
    if not isinstance(name, str) or not name:
        raise RowFault(f"{path}.name", describe(name), "the function's name", "name the function")
    return name


def _id(value: dict[str, Any], path: str) -> str:
    identifier = value.get("id")
    if identifier is not None and not isinstance(identifier, str):
        raise RowFault(f"{path}.id", describe(identifier), "a string", "write the id as a string")
    return identifier or ""


def _object(value: object, path: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise RowFault(path, describe(value), "a JSON object", "write it as an object")
    check_json(value, path)
    return value


def read_tools(tools: object, path: str) -> tuple[dict[str, Any], ...]:
    """Function declarations with JSON-schema types in lower case, whatever the format wrote."""
    if tools is None:
        return ()
    if not isinstance(tools, list):
        raise RowFault(path, describe(tools), "a list of tools", "write a list")
    found: list[dict[str, Any]] = []
    for index, tool in enumerate(tools):
        where = f"{path}[{index}]"
        if not isinstance(tool, dict):
            raise RowFault(where, describe(tool), "an object with functionDeclarations", "write the tool as an object")
        key = "functionDeclarations" if tool.get("functionDeclarations") is not None else "function_declarations"
        hosted = [name for name in tool if name != key and tool[name] is not None]
        if hosted:
            wanted = "functionDeclarations only"
            raise RowFault(f"{where}.{hosted[0]}", "a hosted tool", wanted, f'remove "{hosted[0]}"')
        declarations = tool.get(key)
        if not isinstance(declarations, list) or not declarations:
            raise RowFault(f"{where}.{key}", describe(declarations), "a list of functions", "declare the functions")
        found += [declaration(item, f"{where}.{key}[{n}]") for n, item in enumerate(declarations)]
    return tuple(found)


def declaration(item: object, path: str) -> dict[str, Any]:
    """One function as `{"name", "description", "parameters"[, "response"]}`, the form chat templates expect."""
    if not isinstance(item, dict):
        raise RowFault(path, describe(item), "an object with name and parameters", "write the function as an object")
    known = ("name", "description", "parameters", "parametersJsonSchema", "parameters_json_schema", "response",
             "responseJsonSchema", "response_json_schema", "strict")  # fmt: skip
    refuse_unknown(item, known, path)
    check_json(item, path)
    description = item.get("description")
    if description is not None and not isinstance(description, str):
        raise RowFault(f"{path}.description", describe(description), "a string", "write the description as text")
    found: dict[str, Any] = {"name": _name(item, path), "description": description or ""}
    schemas = [item[name] for name in known[2:5] if item.get(name) is not None]
    found["parameters"] = lower_types(_object(schemas[0] if schemas else None, f"{path}.parameters")) or {
        "type": "object",
        "properties": {},
    }
    answers = [item[name] for name in known[5:8] if item.get(name) is not None]
    if answers:
        found["response"] = lower_types(_object(answers[0], f"{path}.response"))
    return found


def lower_types(schema: Any) -> Any:
    """A copy of a schema with Google's `"type": "STRING"` written as JSON schema's `"type": "string"`."""
    if isinstance(schema, list):
        return [lower_types(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: value.lower() if key == "type" and isinstance(value, str) else lower_types(value)
        for key, value in schema.items()
    }


def _check_generation_config(row: dict[str, Any]) -> None:
    for key in ("generationConfig", "generation_config"):
        config = row.get(key)
        if config is None:
            continue
        if not isinstance(config, dict):
            raise RowFault(key, describe(config), "an object", f"remove {key}")
        refuse_unknown(config, ("mediaResolution", "media_resolution"), key)
