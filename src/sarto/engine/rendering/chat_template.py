"""A model's chat template: turns into messages, messages into text, in the form of the model's authors.

The environment (`template_sandbox.py`) is the one that chat templates are written for: trimmed blocks,
`raise_exception`, `tojson`, loop controls. If a template does not support a system turn or tools, they are folded into
other turns in one documented way (docs/data.md), never dropped. Knows no tokens.
"""

from __future__ import annotations

import json
from typing import Any

import jinja2
from jinja2 import meta, nodes

from sarto.conversations.conversation import FunctionResponse, RowFault, Turn
from sarto.engine.rendering.template_sandbox import TemplateEnvironment
from sarto.engine.rendering.tool_text import call_text, response_text, tools_text

PROBE = "Qzx"
Message = dict[str, Any]


class ChatTemplate:
    """One compiled template. `variables` are the special tokens that it may name (`bos_token` …)."""

    def __init__(self, source: str, variables: dict[str, str]) -> None:
        self.source = source
        self._variables = variables
        self._environment = TemplateEnvironment()
        self._compiled = self._environment.compile_template(source)
        tree = self._environment.parse(source)
        self.is_traceable = _is_traceable(tree)
        self.takes_tools = "tools" in meta.find_undeclared_variables(tree)
        self.takes_calls = "tool_calls" in source
        self.takes_thought = "reasoning_content" in source
        self.takes_system = self._shows_system()

    def render(self, messages: list[Message], tools: list[Message], *, prompt: bool, thinking: bool) -> str:
        """The text of the messages; with `prompt`, up to the start of the model's reply. Raises RowFault."""
        self._environment.begin()
        try:
            return self._compiled.render(
                messages=messages,
                tools=tools or None,
                documents=None,
                add_generation_prompt=prompt,
                enable_thinking=thinking,
                **self._variables,
            )
        except (
            jinja2.TemplateError,
            TypeError,
            ValueError,
            LookupError,
            ArithmeticError,
            AttributeError,
            RecursionError,
        ) as error:
            reason = f'a conversation the chat template refuses ("{error}")'
            raise RowFault(
                "", reason, "a conversation that the model's template accepts", "change the turns or drop the row"
            ) from None

    def messages(self, turns: tuple[Turn, ...], tools: tuple[dict[str, Any], ...]) -> tuple[list[Message], list[int]]:
        """The messages, and for each turn but the system's the index of its first message."""
        turns = self._folded(turns, tools)
        messages: list[Message] = []
        starts: list[int] = []
        for index, turn in enumerate(turns):
            follows_tool = index > 0 and turns[index - 1].role == "tool" and not self.takes_calls
            if turn.role != "system":
                starts.append(len(messages))
            if turn.role == "tool" and self.takes_calls:
                messages += map(_response_message, turn.responses)
            elif turn.role == "tool":
                messages.append({"role": "user", "content": "\n".join(response_text(r) for r in turn.responses)})
            elif turn.role == "model":
                messages.append(self._model_message(turn))
            elif turn.role == "user" and follows_tool:
                before = messages.pop()
                starts[-1] -= 1
                messages.append({"role": "user", "content": f"{before['content']}\n{turn.text}"})
            else:
                messages.append({"role": turn.role, "content": turn.text})
        return messages, starts

    def tool_messages(self, tools: tuple[dict[str, Any], ...]) -> list[Message]:
        """Declarations as the template's `tools`; empty if the system turn has them."""
        return [{"type": "function", "function": tool} for tool in tools] if self.takes_tools else []

    def thinks(self, turn: Turn) -> bool:
        """Whether a reply has reasoning, so that its prompt has to open it."""
        return bool((split_thought(turn) if self.takes_thought else turn).thought)

    def _folded(self, turns: tuple[Turn, ...], tools: tuple[dict[str, Any], ...]) -> tuple[Turn, ...]:
        """The same turns, with content that the template does not support moved into a turn that it supports."""
        system = turns[0].text if turns and turns[0].role == "system" else ""
        rest = turns[1:] if system else turns
        if tools and not self.takes_tools:
            system = f"{system}\n\n{tools_text(tools)}" if system else tools_text(tools)
        if not system:
            return rest
        if self.takes_system:
            return (turns[0] if system is turns[0].text else Turn("system", system), *rest)
        first = next((index for index, turn in enumerate(rest) if turn.role == "user"), None)
        if first is None:
            return rest
        return (*rest[:first], Turn("user", system + "\n\n" + rest[first].text), *rest[first + 1 :])

    def _model_message(self, turn: Turn) -> Message:
        message: Message = {"role": "assistant", "content": turn.text}
        if turn.thought and not self.takes_thought:
            raise RowFault("", "a thought", "replies only: this model has no place for thoughts", "remove the thought")
        if turn.thought:
            message |= {"reasoning_content": turn.thought, "thinking": turn.thought}
        if turn.calls and self.takes_calls:
            message["tool_calls"] = [
                {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                | ({"id": call.id} if call.id else {})
                for call in turn.calls
            ]
        elif turn.calls:
            message["content"] = "\n".join([*([turn.text] if turn.text else []), *map(call_text, turn.calls)])
        return message

    def _shows_system(self) -> bool:
        messages = [{"role": "system", "content": PROBE}, {"role": "user", "content": "?"}]
        try:
            return PROBE in self.render(messages, [], prompt=True, thinking=False)
        except RowFault:
            return False


def split_thought(turn: Turn) -> Turn:
    """Split a reply that begins with `<think>…</think>` into a thought and a reply."""
    if turn.role != "model" or turn.thought or "</think>" not in turn.text:
        return turn
    before, _, after = turn.text.partition("</think>")
    if not before.lstrip().startswith("<think>"):
        return turn
    thought = before.lstrip().removeprefix("<think>").strip("\n")
    return Turn(turn.role, after.lstrip("\n"), turn.calls, turn.responses, thought)


def _response_message(response: FunctionResponse) -> Message:
    text = isinstance(response.content, str)
    content = response.content if text else json.dumps(response.content, ensure_ascii=False)
    message: Message = {"role": "tool", "name": response.name, "content": content}
    return message | ({"tool_call_id": response.id} if response.id else {})


def _is_traceable(tree: nodes.Template) -> bool:
    """Whether texts reach the output without passing through a captured block, a macro or `~`."""
    for kind in (nodes.Macro, nodes.CallBlock, nodes.FilterBlock, nodes.AssignBlock):
        if tree.find(kind) is not None:
            return False
    direct = sum(isinstance(child, nodes.Concat) for output in tree.find_all(nodes.Output) for child in output.nodes)
    return direct == len(list(tree.find_all(nodes.Concat)))
