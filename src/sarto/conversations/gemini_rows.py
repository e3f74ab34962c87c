"""Gemini's `contents`, `systemInstruction` and `tools` into turns and tool declarations.

Knows one format only; `conversations/examples.py` chooses it. Serving reads its requests through the same functions.
"""

from __future__ import annotations

from typing import Any

from sarto.conversations.conversation import (
    TEXT_BEHIND_CALL,
    FunctionCall,
    FunctionResponse,
    Role,
    RowFault,
    Turn,
    checked_json,
    describe,
    join_turns,
    refuse_media,
)
from sarto.schema.generation import GenerationConfig
from sarto.schema.wire import to_snake

ROLES: dict[str, Role] = {"user": "user", "model": "model", "assistant": "model", "function": "tool", "tool": "tool"}
"""By lower case: Google accepts USER for user."""
WITHOUT_EFFECT = frozenset(
    ["generationConfig", "generation_config", "safetySettings", "safety_settings", "toolConfig", "tool_config",
     "labels"]
)  # fmt: skip
"""Fields of a logged request besides its prompt. They change no token of the prompt, so a row may have them."""
ROW_KEYS = frozenset(["contents", "systemInstruction", "system_instruction", "tools", *WITHOUT_EFFECT])
OUTPUT = "output"
"""The key in Google's functionResponse for the result of a function that is not a JSON object."""
SCHEMA_MAPS = frozenset(["properties", "patternProperties", "dependentSchemas", "$defs", "defs", "definitions"])
"""Keys of a schema whose values are schemas by name."""
SCHEMAS = frozenset(
    ["items", "additionalProperties", "additional_properties", "unevaluatedItems", "unevaluatedProperties", "contains",
     "propertyNames", "not", "if", "then", "else", "anyOf", "any_of", "oneOf", "allOf", "prefixItems", "prefix_items"]
)  # fmt: skip
"""Keys of a schema whose value is a schema, or a list of them."""
SCHEMA_LISTS = frozenset(
    ["required", "enum", "anyOf", "any_of", "oneOf", "allOf", "prefixItems", "prefix_items", "propertyOrdering",
     "property_ordering"]
)  # fmt: skip
NULL_HAS_A_MEANING = frozenset(["default", "const", "example"])


def read_contents_row(row: dict[str, Any]) -> tuple[list[Turn], list[str], tuple[dict[str, Any], ...]]:
    """Turns, the path of each, and tools. Raises RowFault."""
    if not ROW_KEYS.issuperset(row):
        name = next(key for key in row if key not in ROW_KEYS)
        expected = "contents, systemInstruction, tools, generationConfig, safetySettings, toolConfig, labels"
        raise RowFault(name, "an unknown field", f"only {expected}", f'remove "{name}"')
    _check_generation_config(row)
    turns: list[Turn] = []
    paths: list[str] = []
    read_system(row, turns, paths)
    contents = listed(row.get("contents"))
    if not contents:
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
    turns, paths = join_turns(turns, paths)
    return turns, paths, read_tools(row.get("tools"), "tools")


def listed(value: object) -> list[Any]:
    """The values of a repeated field: Google's JSON accepts one value in place of a list, and null for an empty one."""
    if value is None:
        return []
    return value if type(value) is list else [value]


def _plain_turn(content: dict[str, Any]) -> Turn | None:
    """The turn of the most frequent form, with one text part only; None for every other."""
    parts = content.get("parts")
    if len(content) != 2 or type(parts) is not list or len(parts) != 1:
        return None
    part, role = parts[0], content.get("role")
    if type(part) is not dict or len(part) != 1 or (role != "user" and role != "model"):
        return None
    text = part.get("text")
    if type(text) is not str:
        return None
    return Turn("user" if role == "user" else "model", text)


def read_system(row: dict[str, Any], turns: list[Turn], paths: list[str]) -> None:
    """Append the system turn, under either of its two names. One without text is ignored."""
    key = "systemInstruction" if row.get("systemInstruction") is not None else "system_instruction"
    system = row.get(key)
    if system is None:
        return
    if key == "systemInstruction" and row.get("system_instruction") is not None:
        raise RowFault("system_instruction", "the system instruction twice", "it once", "remove one of the two")
    text = system if isinstance(system, str) else "".join(_system_texts(system, key))
    if text.strip():
        turns.append(Turn("system", text))
        paths.append(key)


def _system_texts(system: object, path: str) -> list[str]:
    if not isinstance(system, dict) or not listed(system.get("parts")):
        raise RowFault(path, describe(system), 'an object such as {"parts": [{"text": "…"}]}', "write it that way")
    refuse_unknown(system, ("role", "parts"), path)
    texts = []
    for index, part in enumerate(listed(system["parts"])):
        if isinstance(part, dict):
            refuse_media(part, f"{path}.parts[{index}]")
        if not isinstance(part, dict) or set(part) != {"text"} or not isinstance(part["text"], str):
            raise RowFault(f"{path}.parts[{index}]", describe(part), "a text part", "keep only text here")
        texts.append(part["text"])
    return texts


def refuse_unknown(value: dict[str, Any], known: tuple[str, ...], path: str) -> None:
    """Refuse unknown fields; null counts as absent."""
    for key in value:
        if key not in known and value[key] is not None:
            raise RowFault(f"{path}.{key}", "an unknown field", f"only {', '.join(known)}", f'remove "{key}"')


def read_content(content: dict[str, Any], path: str, index: int, count: int) -> list[Turn]:
    """One content as one turn; two when a user adds text after function responses."""
    refuse_unknown(content, ("role", "parts"), path)
    role = _role(content.get("role"), path, index, count)
    parts = listed(content.get("parts"))
    if not parts:
        raise RowFault(
            f"{path}.parts", describe(content.get("parts")), "a list of parts", "give the turn at least one part"
        )
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[FunctionCall] = []
    responses: list[FunctionResponse] = []
    for number, part in enumerate(parts):
        where = f"{path}.parts[{number}]"
        kind = _part_kind(part, where)
        if kind == "text":
            _read_text(part, where, role, texts, thoughts, bool(calls))
        elif kind == "functionCall":
            calls.append(_read_call(part, where, role))
        else:
            if texts:
                raise RowFault(where, "a function response after text", "responses first", "move the text after it")
            responses.append(_read_response(part, where, role))
    text = "".join(texts)
    if not responses:
        if role == "tool":
            raise RowFault(path, "a function turn without response", "functionResponse parts", "use the role user")
        return [Turn(role, text, tuple(calls), (), "".join(thoughts))]
    turns = [Turn("tool", responses=tuple(responses))]
    return [*turns, Turn("user", text)] if text else turns


def _role(value: object, path: str, index: int, count: int) -> Role:
    """The role of a content. A missing role is unambiguous in a single question and in one exchange, and a fault in
    longer conversations."""
    if value is None or value == "":
        if count <= 2:
            return "model" if index else "user"
        raise RowFault(f"{path}.role", "no role", '"user" or "model"', "name the role of every turn")
    spelled = value.lower() if isinstance(value, str) else ""
    if spelled in ROLES:
        return ROLES[spelled]
    fix = "put it in systemInstruction" if spelled == "system" else "use one of these roles"
    raise RowFault(f"{path}.role", describe(value), '"user" or "model"', fix)


def _part_kind(part: object, path: str) -> str:
    if not isinstance(part, dict):
        raise RowFault(path, describe(part), 'an object such as {"text": "…"}', "write the part as an object")
    refuse_media(part, path)
    kinds = [
        kind
        for kind, names in (
            ("text", ("text",)),
            ("functionCall", ("functionCall", "function_call")),
            ("functionResponse", ("functionResponse", "function_response")),
        )
        if any(part.get(name) is not None for name in names)
    ]
    if len(kinds) != 1:
        seen = " and ".join(kinds) or describe(part)
        raise RowFault(path, seen, "exactly one of text, functionCall, functionResponse", "split or fill in the part")
    known = {"text": ("text", "thought"), "functionCall": ("functionCall", "function_call"),
             "functionResponse": ("functionResponse", "function_response")}  # fmt: skip
    refuse_unknown(part, known[kinds[0]], path)
    return kinds[0]


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
        raise RowFault(path, "a thought after the reply", "thoughts first", "move the thought to the front")
    if text and not thought and after_call:
        raise RowFault(path, *TEXT_BEHIND_CALL)
    if text:
        (thoughts if thought else texts).append(text)


def _read_call(part: dict[str, Any], path: str, role: Role) -> FunctionCall:
    key = "functionCall" if part.get("functionCall") is not None else "function_call"
    call, where = part[key], f"{path}.{key}"
    if role != "model":
        raise RowFault(where, f"a function call of the {role}", "calls in model turns only", 'set the role to "model"')
    if not isinstance(call, dict):
        raise RowFault(where, describe(call), "an object with name and args", "write the call as an object")
    refuse_unknown(call, ("name", "args", "id"), where)
    return FunctionCall(_name(call, where), _object(call.get("args"), f"{where}.args"), _id(call, where))


def _read_response(part: dict[str, Any], path: str, role: Role) -> FunctionResponse:
    key = "functionResponse" if part.get("functionResponse") is not None else "function_response"
    response, where = part[key], f"{path}.{key}"
    if role == "model":
        raise RowFault(where, "a function response of the model", "responses in user turns", 'set the role to "user"')
    if not isinstance(response, dict):
        raise RowFault(where, describe(response), "an object with name and response", "write it as an object")
    refuse_unknown(response, ("name", "response", "id"), where)
    content = _object(response.get("response"), f"{where}.response")
    if set(content) == {OUTPUT}:
        content = content[OUTPUT]
    return FunctionResponse(_name(response, where), content, _id(response, where))


def response_object(content: Any) -> dict[str, Any]:
    """A function's result as Google's functionResponse; reading it returns the same content."""
    return content if isinstance(content, dict) and set(content) != {OUTPUT} else {OUTPUT: content}


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
    content: dict[str, Any] = checked_json(value, path)
    return content


def read_tools(tools: object, path: str) -> tuple[dict[str, Any], ...]:
    """Function declarations with JSON-schema types in lower case, for any format."""
    functions: dict[str, dict[str, Any]] = {}
    for index, tool in enumerate(listed(tools)):
        where = f"{path}[{index}]"
        if not isinstance(tool, dict):
            raise RowFault(where, describe(tool), "an object with functionDeclarations", "write the tool as an object")
        key = "functionDeclarations" if tool.get("functionDeclarations") is not None else "function_declarations"
        hosted = [name for name in tool if name != key and tool[name] is not None]
        if hosted:
            expected = "functionDeclarations only"
            raise RowFault(f"{where}.{hosted[0]}", "a hosted tool", expected, f'remove "{hosted[0]}"')
        declarations = listed(tool.get(key))
        if not declarations:
            raise RowFault(f"{where}.{key}", describe(tool.get(key)), "a list of functions", "declare the functions")
        for number, item in enumerate(declarations):
            declare(functions, item, f"{where}.{key}[{number}]")
    return tuple(functions.values())


def declare(functions: dict[str, dict[str, Any]], item: object, path: str) -> None:
    """Add a function to the declared ones, by name. Raises RowFault for a repeated name."""
    function = _declaration(item, path)
    if function["name"] in functions:
        seen = f"a second declaration of {describe(function['name'])}"
        raise RowFault(f"{path}.name", seen, "each function once", "remove or rename one of the two")
    functions[function["name"]] = function


def _declaration(item: object, path: str) -> dict[str, Any]:
    """One function as `{"name", "description", "parameters"[, "response"]}`, the form chat templates expect."""
    if not isinstance(item, dict):
        raise RowFault(path, describe(item), "an object with name and parameters", "write the function as an object")
    known = ("name", "description", "parameters", "parametersJsonSchema", "parameters_json_schema", "response",
             "responseJsonSchema", "response_json_schema", "strict")  # fmt: skip
    refuse_unknown(item, known, path)
    written: dict[str, Any] = checked_json(item, path)
    description = written.get("description")
    if description is not None and not isinstance(description, str):
        raise RowFault(f"{path}.description", describe(description), "a string", "write the description as text")
    declaration: dict[str, Any] = {"name": _name(written, path), "description": description or ""}
    schemas = [written[name] for name in known[2:5] if written.get(name) is not None]
    declaration["parameters"] = plain_schema(_object(schemas[0] if schemas else None, f"{path}.parameters")) or {
        "type": "object",
        "properties": {},
    }
    answers = [written[name] for name in known[5:8] if written.get(name) is not None]
    if any(answers):
        declaration["response"] = plain_schema(_object(answers[0], f"{path}.response"))
    return declaration


def plain_schema(schema: Any) -> Any:
    """A copy of a schema in JSON schema's form: Google's `STRING` is `string`, and one value in place of a list is a
    list. Null fields and null properties are omitted, because tables fill absent keys with null."""
    if isinstance(schema, list):
        return [plain_schema(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    plain: dict[str, Any] = {}
    for key, value in schema.items():
        if value is None and key not in NULL_HAS_A_MEANING:
            continue
        if key == "type":
            value = [_lower(each) for each in value] if isinstance(value, list) else _lower(value)
        elif key in SCHEMA_MAPS and isinstance(value, dict):
            value = {name: plain_schema(inner) for name, inner in value.items() if inner is not None}
        elif key in SCHEMAS:
            value = plain_schema(value)
        plain[key] = [value] if key in SCHEMA_LISTS and isinstance(value, str | dict) else value
    return plain


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def _check_generation_config(row: dict[str, Any]) -> None:
    """Accept Google's fields, which do not affect the prompt, and refuse others."""
    for key in ("generationConfig", "generation_config"):
        config = row.get(key)
        if config is not None and not isinstance(config, dict):
            raise RowFault(key, describe(config), "an object", f"remove {key}")
        for name in config or ():
            spelled = to_snake(name)
            if GenerationConfig.SPELLINGS.get(spelled, spelled) not in GenerationConfig.model_fields:
                raise RowFault(f"{key}.{name}", "an unknown field", "a field of GenerationConfig", f'remove "{name}"')
