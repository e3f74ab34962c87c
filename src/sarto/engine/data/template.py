"""A model's chat template: turns into messages, messages into text, the way the model's makers meant it.

The environment is the one chat templates are written for (sandboxed Jinja, trimmed blocks, `raise_exception`,
`tojson`, loop controls). What a template cannot say itself, a system turn or tools, is folded into the turns in one
documented way (docs/data.md), never dropped. Knows no tokens.
"""

from __future__ import annotations

import datetime
import json
from typing import Any

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sarto.engine.data.tools import call_text, response_text, tools_text
from sarto.errors import FailedPrecondition
from sarto.schema.turns import Response, RowFault, Turn

FIXED_DAY = datetime.datetime(2024, 7, 26, tzinfo=datetime.UTC)
"""What a template that prints today's date sees: always the same day, so that a prompt has the same tokens whenever
it is rendered. It is the day such templates themselves fall back to."""
PROBE = "Qzx"
Message = dict[str, Any]


class _GenerationTag(Extension):
    """`{% generation %}` marks replies in some templates; masks come from text spans, so it only has to pass."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = FIXED_DAY.strftime
    return environment


class ChatTemplate:
    """One template, compiled. `variables` are the special tokens it may name (`bos_token` …)."""

    def __init__(self, source: str, variables: dict[str, str]) -> None:
        self.source = source
        self._variables = variables
        environment = _environment()
        try:
            tree = environment.parse(source)
            self._compiled = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise FailedPrecondition(f"the chat template does not compile: line {error.lineno}: {error}") from None
        self.is_traceable = _is_traceable(tree)
        self.takes_tools = "tools" in meta.find_undeclared_variables(tree)
        self.takes_calls = "tool_calls" in source
        self.takes_thought = "reasoning_content" in source
        self.takes_system = self._shows_system()

    def render(self, messages: list[Message], tools: list[Message], *, prompt: bool, thinking: bool) -> str:
        """The text of the messages; with `prompt`, up to where the model's reply begins. Raises RowFault."""
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
                "", reason, "a conversation this model can hold", "change the turns or drop the row"
            ) from None

    def messages(self, turns: tuple[Turn, ...], tools: tuple[dict[str, Any], ...]) -> tuple[list[Message], list[int]]:
        """Messages, and for each turn but the system's the index of its first message."""
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
        """Declarations as the template's `tools`; empty where the system turn carries them."""
        return [{"type": "function", "function": tool} for tool in tools] if self.takes_tools else []

    def thinks(self, turn: Turn) -> bool:
        """Whether a reply comes with reasoning, so that its prompt has to open it."""
        return bool((split_thought(turn) if self.takes_thought else turn).thought)

    def _folded(self, turns: tuple[Turn, ...], tools: tuple[dict[str, Any], ...]) -> tuple[Turn, ...]:
        """The same turns, with what the template has no place for told in a turn it has a place for."""
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
    """A reply that spells its reasoning as `<think>…</think>` in front, as a thought and a reply."""
    if turn.role != "model" or turn.thought or "</think>" not in turn.text:
        return turn
    before, _, after = turn.text.partition("</think>")
    if not before.lstrip().startswith("<think>"):
        return turn
    thought = before.lstrip().removeprefix("<think>").strip("\n")
    return Turn(turn.role, after.lstrip("\n"), turn.calls, turn.responses, thought)


def _response_message(response: Response) -> Message:
    content = (
        response.content if isinstance(response.content, str) else json.dumps(response.content, ensure_ascii=False)
    )
    message: Message = {"role": "tool", "name": response.name, "content": content}
    return message | ({"tool_call_id": response.id} if response.id else {})


def _is_traceable(tree: nodes.Template) -> bool:
    """Whether texts reach the output without passing through a captured block, a macro or `~` on the way."""
    for kind in (nodes.Macro, nodes.CallBlock, nodes.FilterBlock, nodes.AssignBlock):
        if tree.find(kind) is not None:
            return False
    direct = sum(isinstance(child, nodes.Concat) for output in tree.find_all(nodes.Output) for child in output.nodes)
    return direct == len(list(tree.find_all(nodes.Concat)))
