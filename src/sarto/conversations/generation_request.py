"""Converts a request's contents to the conversation to continue, and a conversation to such a request.

Each wire form has one reader for conversations (`gemini_rows.py`, `chat_rows.py`). These two functions carry a
conversation to the worker and back unchanged, so that every prompt is the same. Tests compare all places
(tests/test_one_prompt.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sarto.conversations.examples import Example, RowFault, Turn, read_conversation
from sarto.conversations.gemini_rows import response_object
from sarto.errors import InvalidArgument
from sarto.schema.generation import (
    Content,
    FunctionCall,
    FunctionDeclaration,
    FunctionResponse,
    GenerateContentRequest,
    Part,
    Tool,
)


def conversation_of(
    contents: Sequence[Content], system_instruction: Content | None = None, tools: Sequence[Tool] = ()
) -> Example:
    """A request's contents as the example to continue. Raises InvalidArgument."""
    row: dict[str, Any] = {"contents": [content.to_json() for content in contents]}
    if system_instruction is not None and system_instruction.parts:
        row["systemInstruction"] = system_instruction.to_json()
    if tools:
        row["tools"] = [tool.to_json() for tool in tools]
    try:
        return read_conversation(row)
    except RowFault as fault:
        raise InvalidArgument(fault.reason) from None


def request_of(conversation: Example) -> GenerateContentRequest:
    """The request from which `conversation_of` returns this conversation."""
    system = next((turn.text for turn in conversation.turns if turn.role == "system"), "")
    declared = [_declaration(tool) for tool in conversation.tools]
    return GenerateContentRequest(
        contents=[_content(turn) for turn in conversation.turns if turn.role != "system"],
        system_instruction=Content(parts=[Part(text=system)]) if system else None,
        tools=[Tool(function_declarations=declared)] if declared else [],
    )


def _content(turn: Turn) -> Content:
    parts = [Part(text=turn.thought, thought=True)] if turn.thought else []
    parts += [Part(text=turn.text)] if turn.text else []
    parts += [Part(function_call=FunctionCall(id=c.id, name=c.name, args=c.arguments)) for c in turn.calls]
    for answer in turn.responses:
        response = FunctionResponse(id=answer.id, name=answer.name, response=response_object(answer.content))
        parts.append(Part(function_response=response))
    return Content(role="model" if turn.role == "model" else "user", parts=parts or [Part(text="")])


def _declaration(tool: dict[str, Any]) -> FunctionDeclaration:
    return FunctionDeclaration(
        name=tool["name"],
        description=tool["description"],
        parameters_json_schema=tool["parameters"],
        response_json_schema=tool.get("response"),
    )
