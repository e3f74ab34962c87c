"""The same conversation has the same prompt, token by token, wherever Sarto makes one.

`PLACES` lists every place, each with the modules in which it reads or renders; the last test fails when a module of the
package comes to do so and no place names it.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from sarto.api.openai.messages import read_chat
from sarto.conversations.examples import RowFault, parse_examples, parse_line
from sarto.conversations.generation_request import conversation_of, request_of
from sarto.conversations.json_text import read_json_text
from sarto.engine.dataset.tokenise import TokeniseOptions, offsets, process_block
from sarto.engine.dataset_report.mask_proof import show_row
from sarto.engine.evaluation.rows import read_evaluation_row
from sarto.engine.rendering.render import pack_row, render_fully, render_packed, render_prompt, replies
from sarto.engine.rendering.tokenizer import ChatTokenizer
from sarto.engine.serving.request import count_tokens, prompt_tokens, read_form
from sarto.errors import InvalidArgument
from sarto.schema.generation import CountTokensRequest, GenerateContentRequest
from tests.engine.conversations import FAMILIES, FAMILY_NAMES
from tests.structure.sources import modules, tree

LOADED = {name: ChatTokenizer.load(FAMILIES / name) for name in FAMILY_NAMES}
Row = dict[str, Any]
Prompt = list[int] | str
"""Tokens, or "refused"."""
Place = Callable[[Row, ChatTokenizer], list[int]]


def said(role: str, *texts: str) -> Row:
    return {"role": role, "parts": [{"text": text} for text in texts]}


def call(name: str, arguments: Row) -> Row:
    return {"functionCall": {"name": name, "args": arguments}}


def asked(name: str, arguments: str, identifier: str) -> Row:
    return {"id": identifier, "type": "function", "function": {"name": name, "arguments": arguments}}


PARAMETERS = {"type": "object", "properties": {"q": {"type": "string", "enum": ["a"]}}, "required": ["q"]}
QUESTION = "Which version do we run?"


def with_tool(
    result: str, *, name: str = "look_up", about: str = "Looks up", parameters: Row = PARAMETERS
) -> list[Row]:
    """A question whose answer a tool knows, in Google's form and in OpenAI's."""
    function = {"name": name, "description": about, "parameters": parameters}
    return [
        {
            "tools": [{"functionDeclarations": [function]}],
            "contents": [
                said("user", QUESTION),
                {"role": "model", "parts": [call(name, {"q": "a"})]},
                {"role": "user", "parts": [{"functionResponse": {"name": name, "response": {"output": result}}}]},
                said("model", "See above."),
            ],
        },
        {
            "tools": [{"type": "function", "function": function}],
            "messages": [
                {"role": "user", "content": QUESTION},
                {"role": "assistant", "content": None, "tool_calls": [asked(name, '{"q": "a"}', "")]},
                {"role": "tool", "content": result},
                {"role": "assistant", "content": "See above."},
            ],
        },
    ]


RESULTS = {
    "word": "ready", "number": "3.10", "object": '{"state":"ready"}', "hash": "12e4567", "NaN": "NaN",
    "NaN inside": '{"price": NaN}', "repeated key": '{"a": 1, "a": 2}', "big": "123456789012345678901234567890",
    "empty": "", "escaped": '"\\ud800" \\n', "deep": "[" * 300 + "]" * 300, "odd": "a\u2028b 漢\t\r\n  ",
}  # fmt: skip
UPPER = {"type": "OBJECT", "properties": {"q": {"type": "STRING", "enum": ["a"]}}, "required": ["q"]}
PADDED = {
    "type": "object",
    "properties": {"q": {"type": "string", "enum": ["a"], "items": None}, "y": None},
    "required": ["q"],
    "title": None,
}
ROLES = {"u": "user", "a": "assistant", "s": "system", "d": "developer"}


def messages(*pairs: tuple[str, Any]) -> Row:
    return {"messages": [{"role": ROLES[role], "content": content} for role, content in pairs]}


def contents(*turns: Any) -> Row:
    """Texts of the user and the model by turns, or whole contents."""
    roles = ("user", "model")
    return {"contents": [said(roles[n % 2], turn) if isinstance(turn, str) else turn for n, turn in enumerate(turns)]}


def gave(name: str, response: Row) -> Row:
    return {"functionResponse": {"name": name, "response": response}}


def with_object(response: Row) -> Row:
    called, answered = {"role": "model", "parts": [call("f", {})]}, {"role": "user", "parts": [gave("f", response)]}
    return contents("q", called, answered, "3")


OBJECT: Row = {"b": [1, 2.5, None, True], "a": "é"}
THOUGHT = {"role": "model", "parts": [{"text": "Add.", "thought": True}, {"text": "42"}]}
CALLS = [call("f", {"x": 1.5}), call("g", {})]
CONVERSATIONS: dict[str, list[Row]] = {
    "one exchange": [
        contents("Hi", "Hello"),
        {"contents": {"role": "USER", "parts": {"text": "Hi"}}, "reply": said("MODEL", "Hello")},
        messages(("u", "Hi"), ("a", "Hello")),
    ],
    "system, and pieces of turns": [
        contents("Name one.", "Blue\n is one.", "More", "R") | {"systemInstruction": said("", "Be brief.\n\nBe kind.")},
        {
            "system_instruction": {"parts": {"text": "Be brief.\n\nBe kind."}},
            "contents": [
                said("user", "Name", " one", "."), said("model", "Blue"), said("model", "\n"), said("model", " is", ""),
                said("model", " one."), said("model", ""), said("user", "More"), said("model", "R"),
            ],
        },
        messages(
            ("s", "Be brief."), ("d", "Be kind."),
            ("u", [{"type": "text", "text": "Name "}, {"type": "text", "text": "one."}]),
            ("a", "Blue\n is one."), ("u", "More"), ("a", "R"),
        ),
    ],
    "messages of one role": [
        contents("Look:\n\nWhat is it?", "A\n\nB"),
        messages(("u", "Look:"), ("u", "What is it?"), ("a", "A"), ("a", "B")),
    ],
    "an empty system instruction": [
        contents("Hi", "Hello"),
        contents("Hi", "Hello") | {"systemInstruction": said("system", "")},
        messages(("s", ""), ("u", "Hi"), ("a", "Hello")),
    ],
    "white space": [
        contents("  a\n\n b \t", "x\n ", "\u2028c", "\n y"),
        messages(("u", "  a\n\n b \t"), ("a", "x\n "), ("u", "\u2028c"), ("a", "\n y")),
    ],
    "special tokens in texts": [
        contents("a<|im_end|><eos></s>", "<|eot_id|>b"),
        {"contents": [
            said("user", "a<|im_", "end|><e", "os></s>"), said("model", "<|eot_id|>"), said("model", "b"),
        ]},
        messages(("u", "a<|im_end|><eos></s>"), ("a", "<|eot_id|>b")),
    ],
    "a thought in an earlier reply": [
        contents("12 + 30?", THOUGHT, "Sure?", "Yes"),
        {"messages": [
            {"role": "user", "content": "12 + 30?"},
            {"role": "assistant", "content": "42", "reasoning_content": "Add."},
            {"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Yes"},
        ]},
    ],
    "two calls at once": [
        contents(
            "q", {"role": "model", "parts": [{"text": "Let me see."}, *CALLS]},
            {"role": "user", "parts": [gave("f", {"output": "1"}), gave("g", {"output": "2"})]}, "3",
        ),
        {"contents": [
            said("user", "q"), said("model", "Let me"), said("model", " see."),
            {"role": "model", "parts": CALLS[0]}, {"role": "model", "parts": [CALLS[1]]}, said("model", ""),
            {"role": "function", "parts": {"function_response": {"name": "f", "response": {"output": "1"}}}},
            {"role": "user", "parts": [gave("g", {"output": "2"})]}, said("model", "3"),
        ]},
        {"messages": [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": "Let me see.", "tool_calls": [asked("f", '{"x": 1.50}', "")]},
            {"role": "assistant", "content": "", "tool_calls": [asked("g", "", "")]},
            {"role": "tool", "name": "f", "content": "1"}, {"role": "tool", "name": "g", "content": "2"},
            {"role": "assistant", "content": "3"},
        ]},
    ],
    "what a function gave as an object": [with_object(OBJECT), with_object({"output": OBJECT})],
    "numbers without a fraction": [
        with_object({"x": [3, -2], "y": 10**18, "z": 2.5}), with_object({"x": [3.0, -2.0], "y": 1e18, "z": 2.50}),
    ],
    "an output inside an output": [with_object({"output": {"output": 1}})],
    "schemas as they are written": [
        with_tool("1")[0], with_tool("1", parameters=UPPER)[0], with_tool("1", parameters=PADDED)[0],
        with_tool("1", parameters=PARAMETERS | {"required": "q"})[0], with_tool("1", parameters=PADDED)[1],
    ],
    "special tokens in tools": with_tool(
        "<|im_end|><eos>", name="look<|im_end|>up", about="Finds <|im_end|><|im_start|><start_of_turn><|eot_id|>",
        parameters={"type": "object", "description": "<|im_start|>", "required": ["q<eos>"],
                    "properties": {"q<eos>": {"type": "string", "enum": ["</s>", "<|eot_id|>"]}}},
    ),
    **{f"a tool's result, {name}": with_tool(result) for name, result in RESULTS.items()},
}  # fmt: skip


def row_of(form: Row) -> Row:
    """The form as a row to learn from, its last turn the reply."""
    if "reply" not in form:
        return form
    return {key: value for key, value in form.items() if key != "reply"} | {
        "contents": [form["contents"], form["reply"]]
    }


def body_of(form: Row) -> Row:
    """The form as a request: without the reply."""
    key = "contents" if "contents" in form else "messages"
    body = {name: value for name, value in form.items() if name != "reply"}
    return body if "reply" in form else body | {key: without_reply(body[key])}


def without_reply(turns: list[Row]) -> list[Row]:
    """Turns up to the last of the user or of a tool."""
    while turns[-1]["role"] in ("model", "assistant"):
        turns = turns[:-1]
    return turns


def written(row: Row) -> bytes:
    return orjson.dumps(row)


def before_last_reply(tokens: list[int], mask: list[bool]) -> list[int]:
    end = len(mask) - mask[::-1].index(True)
    start = end - mask[:end][::-1].index(False) if False in mask[:end] else 0
    return tokens[:start]


def as_served(request: GenerateContentRequest, tokenizer: ChatTokenizer) -> list[int]:
    """The way to the worker, as JSON, and what it makes of it."""
    sent = GenerateContentRequest.read(orjson.loads(orjson.dumps(request.to_json())))
    tokens = read_form(sent, tokenizer).prompt
    again = request_of(conversation_of(sent.contents, sent.system_instruction, sent.tools))
    assert prompt_tokens(again, tokenizer)[1] == tokens, "a conversation survives becoming a request"
    return tokens


def training(form: Row, tokenizer: ChatTokenizer) -> list[int]:
    example = parse_line(written(row_of(form)), 1)
    rows = render_packed(example, tokenizer)
    assert rows == [pack_row(each, tokenizer) for each in render_fully(example, tokenizer)], "a plan is the template"
    row = rows[-1].rendered()
    return before_last_reply(row.tokens, row.loss_mask)


def data_stage(form: Row, tokenizer: ChatTokenizer) -> list[int]:
    """Training and validation files alike."""
    result = process_block(written(row_of(form)), 1, tokenizer, TokeniseOptions("auto", 4096, 4))
    if result.facts.faults:
        _, _, seen, wanted, fix = result.facts.faults[0]
        raise RowFault("", seen, wanted, fix)
    tokens: list[int] = result.arrays["tokens"].tolist()
    start = int(offsets(result.arrays["lengths"])[-2])
    return tokens[start : start + int(result.arrays["spans"][-2])]


def proof(form: Row, tokenizer: ChatTokenizer, folder: Path) -> list[int]:
    path = folder / "row.jsonl"
    path.write_bytes(written(row_of(form)) + b"\n")
    shown = show_row(path, 1, tokenizer)
    if "fault" in shown:
        raise RowFault("", "", "", "")
    assert shown["isSame"]
    tokens: list[int] = shown["serving"][-1]["tokens"]
    return tokens


def evaluation(form: Row, tokenizer: ChatTokenizer) -> list[int]:
    return as_served(read_evaluation_row(written(row_of(form)), 1).request, tokenizer)


def evaluation_by_reference(form: Row, tokenizer: ChatTokenizer) -> list[int]:
    row = read_evaluation_row(written(body_of(form) | {"reference": "r"}), 1)
    return as_served(row.request, tokenizer)


def distillation(form: Row, tokenizer: ChatTokenizer) -> list[int]:
    """The question to a teacher, from a row whose answer is left out."""
    prompt = parse_examples(written(row_of(form)), 1, data_format="prompts")[0]
    return as_served(request_of(prompt), tokenizer)


def preference(form: Row, tokenizer: ChatTokenizer) -> list[int]:
    scored = [{"score": score, "completion": said("model", str(score))} for score in (0, 1)]
    pair = parse_examples(written(body_of(form) | {"completions": scored}), 1, data_format="preference")
    prompts = [prompt for example in pair for prompt, _ in replies(example)]
    first, second = (render_prompt(prompt, tokenizer) for prompt in prompts)
    assert first == second
    return first


def generate_content(form: Row, tokenizer: ChatTokenizer) -> list[int]:
    return as_served(GenerateContentRequest.read(read_json_text(written(body_of(form)))), tokenizer)


def streamed_history(form: Row, tokenizer: ChatTokenizer) -> list[int]:
    """The model's turns as a client keeps them that got them letter by letter, the last chunk empty."""
    contents = body_of(form)["contents"]
    pieces: list[Row] = []
    for content in contents if isinstance(contents, list) else [contents]:
        parts = content["parts"] if isinstance(content["parts"], list) else [content["parts"]]
        if content["role"] != "model":
            pieces.append(content)
            continue
        for part in parts:
            letters = [part | {"text": letter} for letter in part["text"]] if part.get("text") else [part]
            pieces += [{"role": "model", "parts": [letter]} for letter in letters]
        pieces.append(said("model", ""))
    return as_served(GenerateContentRequest.read(body_of(form) | {"contents": pieces}), tokenizer)


def count_and_compute(form: Row, tokenizer: ChatTokenizer) -> list[int]:
    request = CountTokensRequest.read(CountTokensRequest.read(body_of(form)).to_json())
    tokens = prompt_tokens(request, tokenizer)[1]
    assert count_tokens(tokenizer, request).total_tokens == len(tokens)
    return tokens


def batch(form: Row, tokenizer: ChatTokenizer) -> list[int]:
    row = read_json_text(written({"request": body_of(form)}).replace(b"]}]}", b"],},],}"))
    return as_served(GenerateContentRequest.read(row["request"], "request"), tokenizer)


def openai_chat(form: Row, tokenizer: ChatTokenizer) -> list[int]:
    notes: Row = {"refusal": None, "annotations": [], "provider": "x"}
    body = body_of(form)
    messages = [message | notes for message in body["messages"]]
    return as_served(read_chat(body | {"model": "m", "messages": messages}), tokenizer)


PLACES: dict[str, tuple[Callable[..., list[int]], str, tuple[str, ...]]] = {
    "training": (
        training, "both",
        ("sarto.engine.programs.tune", "sarto.engine.programs.export_check", "sarto.engine.rendering.render"),
    ),
    "training and validation files": (
        data_stage, "both",
        ("sarto.engine.dataset.tokenise", "sarto.engine.dataset.gather"),
    ),
    "showExample and data show": (proof, "both", ("sarto.engine.dataset_report.mask_proof",)),
    "evaluation": (evaluation, "both", ("sarto.engine.evaluation.rows", "sarto.engine.programs.evaluate")),
    "evaluation of rows with a reference": (evaluation_by_reference, "contents", ("sarto.engine.evaluation.rows",)),
    "preference": (preference, "contents", ("sarto.conversations.examples",)),
    "distillation": (
        distillation, "both", ("sarto.engine.programs.run_data", "sarto.engine.programs.teacher_answers"),
    ),
    "generateContent": (
        generate_content, "contents",
        ("sarto.api.vertex.generation", "sarto.serving.worker.program", "sarto.serving.vllm.generator",
         "sarto.engine.serving.text_queries", "sarto.engine.serving.request", "sarto.engine.serving.engine"),
    ),
    "the history of a streamed chat": (streamed_history, "contents", ("sarto.api.vertex.generation",)),
    "countTokens and computeTokens": (count_and_compute, "contents", ("sarto.engine.serving.text_queries",)),
    "batch prediction": (batch, "contents", ("sarto.control.batches.batch_runner", "sarto.assembly.background")),
    "OpenAI's chat completions": (openai_chat, "messages", ("sarto.api.openai.chat", "sarto.api.openai.messages")),
}  # fmt: skip


def prompts(conversation: str, tokenizer: ChatTokenizer, folder: Path) -> dict[str, Prompt]:
    """What each place makes of each form that it takes."""
    found: dict[str, Prompt] = {}
    for number, form in enumerate(CONVERSATIONS[conversation]):
        for name, (place, takes, _) in PLACES.items():
            if takes != "both" and takes not in form:
                continue
            more = (folder,) if place is proof else ()
            try:
                found[f"{name}, form {number}"] = place(form, tokenizer, *more)
            except (RowFault, InvalidArgument):
                found[f"{name}, form {number}"] = "refused"
    return found


@pytest.mark.parametrize("family", FAMILY_NAMES)
@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_every_place_makes_the_same_prompt(conversation: str, family: str, tmp_path: Path) -> None:
    tokenizer = LOADED[family]
    found = prompts(conversation, tokenizer, tmp_path)
    first = next(iter(found.values()))
    unlike = {
        name: prompt if isinstance(prompt, str) else tokenizer.decode(prompt, skip_special_tokens=False)
        for name, prompt in found.items()
        if prompt != first
    }
    shown = first if isinstance(first, str) else tokenizer.decode(first, skip_special_tokens=False)
    assert not unlike, f"{next(iter(found))}: {shown}"


@pytest.mark.parametrize("family", ["smollm2", "qwen2", "qwen3", "llama31"])
def test_what_all_families_can_hold_is_refused_nowhere(family: str, tmp_path: Path) -> None:
    """So that the test above does not compare refusals."""
    for conversation in CONVERSATIONS:
        if family != "qwen3" and "thought" in conversation:
            continue
        if family == "llama31" and "two calls" in conversation:
            continue
        assert "refused" not in prompts(conversation, LOADED[family], tmp_path).values(), conversation


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_special_tokens_come_from_the_template_alone(family: str, tmp_path: Path) -> None:
    """Declarations and names with spellings have as many special tokens as those without."""
    tokenizer = LOADED[family]
    specials = set(tokenizer.special_ids.values())
    spelled = prompts("special tokens in tools", tokenizer, tmp_path)
    plain = prompts("a tool's result, word", tokenizer, tmp_path)
    for name, tokens in spelled.items():
        other = plain[name]
        if isinstance(tokens, str) or isinstance(other, str):
            assert tokens == other
            continue
        assert [t for t in tokens if t in specials] == [t for t in other if t in specials], name
        assert "\ufdd0" not in tokenizer.decode(tokens, skip_special_tokens=False)


def test_a_template_of_ones_own_gets_no_special_token_from_a_tool() -> None:
    source = (
        "{% for tool in tools or [] %}{{ tool.function.name }}: {{ tool | tojson(ensure_ascii=true) }}\n{% endfor %}"
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
        "{% for call in message.tool_calls or [] %}{{ call.function.name }}({{ call.function.arguments | tojson }})"
        "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    folder = FAMILIES / "smollm2"
    tokenizer = ChatTokenizer(folder, (folder / "tokenizer.json").read_text(), source, {}, [])
    text = tokenizer.decode(
        generate_content(CONVERSATIONS["special tokens in tools"][0], tokenizer), skip_special_tokens=False
    )
    assert "look<|im_end|>up: {" in text and "Finds <|im_end|><|im_start|><start_of_turn>" in text
    specials = set(tokenizer.special_ids.values())
    counts = [
        sum(t in specials for t in generate_content(CONVERSATIONS[name][0], tokenizer))
        for name in ("special tokens in tools", "a tool's result, word")
    ]
    assert counts[0] == counts[1]


@pytest.mark.parametrize(("name", "result"), RESULTS.items())
def test_the_text_of_a_tool_reaches_the_prompt_as_it_was_sent(name: str, result: str) -> None:
    tokens = openai_chat(with_tool(result)[1], LOADED["qwen2"])
    text = LOADED["qwen2"].decode(tokens, skip_special_tokens=False)
    assert f"<tool_response>\n{result}\n</tool_response>" in text


@pytest.mark.parametrize("content", [None, "", [], [{"type": "text", "text": ""}]])
def test_a_reply_may_be_empty_in_a_request_and_is_an_empty_turn(content: Any) -> None:
    tokenizer = LOADED["smollm2"]
    messages = [
        {"role": "user", "content": "A"},
        {"role": "assistant", "content": content},
        {"role": "user", "content": "B"},
    ]
    tokens = openai_chat({"messages": [*messages, {"role": "assistant", "content": "x"}]}, tokenizer)
    assert "assistant\n<|im_end|>\n" in tokenizer.decode(tokens, skip_special_tokens=False)
    contents = [said("user", "A"), said("model", ""), said("user", "B"), said("model", "x")]
    for place in (generate_content, streamed_history, count_and_compute, batch):
        assert place({"contents": contents}, tokenizer) == tokens
    with pytest.raises(RowFault, match=r"messages\[1\]: saw a turn without text"):
        training({"messages": [*messages, {"role": "assistant", "content": "x"}]}, tokenizer)


def test_system_messages_behind_others_are_the_instruction_of_a_request() -> None:
    tokenizer = LOADED["smollm2"]
    behind = [{"role": "user", "content": "A"}, {"role": "system", "content": "S"}, {"role": "user", "content": "B"}]
    first = [{"role": "system", "content": "S"}, {"role": "user", "content": "A\n\nB"}]
    reply = {"role": "assistant", "content": "x"}
    assert openai_chat({"messages": [*behind, reply]}, tokenizer) == openai_chat(
        {"messages": [*first, reply]}, tokenizer
    )
    with pytest.raises(RowFault, match=r"messages\[1\]: saw a system turn after others"):
        training({"messages": [*behind, reply]}, tokenizer)


CHANGED = [
    '{"id": 123456789012345678901234}', '{"x": NaN}', '{"a": 1, "a": 2}', '{"a": "\\ud800"}', "[1]", '{"a": 1e999}',
    '{"a": ' + "[" * 5000 + "]" * 5000 + "}", '{"a": ' + "[" * 100 + "]" * 100 + "}",
]  # fmt: skip


@pytest.mark.parametrize("arguments", CHANGED)
def test_arguments_that_would_change_when_they_are_read_are_refused_by_their_place(arguments: str) -> None:
    messages = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": None, "tool_calls": [asked("f", arguments, "c1")]},
        {"role": "tool", "tool_call_id": "c1", "content": "1"},
    ]
    with pytest.raises(InvalidArgument) as refused:
        read_chat({"model": "m", "messages": messages})
    assert refused.value.violations[0].field.startswith("messages[1].tool_calls[0].function.arguments")
    with pytest.raises(RowFault) as fault:
        parse_line(json.dumps({"messages": [*messages, {"role": "assistant", "content": "x"}]}).encode(), 1)
    assert fault.value.path.startswith("messages[1].tool_calls[0].function.arguments")


def test_the_code_point_that_protects_is_refused_wherever_it_stands() -> None:
    for form in (
        with_tool("a\ufdd0")[0], with_tool("1", name="f\ufdd0")[0], with_tool("1", about="\ufdd0")[0],
        with_tool("1", parameters={"type": "object", "properties": {"\ufdd0": {}}})[0],
        {"contents": [said("user", "\ufdd0"), said("model", "x")]},
    ):  # fmt: skip
        for place in (training, generate_content):
            with pytest.raises((RowFault, InvalidArgument), match=r"U\+FDD0"):
                place(form, LOADED["smollm2"])


MAKERS = frozenset(
    ["render", "render_packed", "render_open", "render_planned", "render_fully", "render_prompt", "prompt_tokens",
     "parse_examples", "parse_line", "read_conversation", "read_contents_row",
     "read_messages_row", "read_messages", "conversation_of", "request_of", "GenerateContentRequest"]
)  # fmt: skip
"""Whoever calls one of these reads a conversation, or makes a prompt of one."""
OTHERS = {
    "sarto.conversations.generation_request": "carries a conversation; every place is behind it",
    "sarto.conversations.chat_rows": "the reader of one wire form",
    "sarto.conversations.gemini_rows": "the reader of the other",
    "sarto.engine.rendering.template_plans": "`render` is an argument there; plans are compared with full renderings",
    "sarto.engine.serving.parity": "compares training with serving itself",
    "sarto.engine.evaluation.metrics.judge": "prompts of our own, no conversation of a user's",
    "sarto.engine.evaluation.evaluate_instances": "rows that hold answers already: nothing is asked",
    "sarto.engine.evaluation.metrics.plan": "prompts of our own",
    "sarto.control.jobs.dataset_check": "checks first rows, keeps nothing",
    "sarto.api.vertex.translation": "one user turn, made by translation_prompt as in training",
    "sarto.engine.reinforcement.prompts": "rows for rewards; their prompts are tokens of the training file",
    "sarto.conversations.convert.shapes": "checks converted rows, keeps nothing of the reading",
    "sarto.rewards.autorater": "prompts of a judge's template, no conversation of a user's",
    "sarto.cli.evaluate": "hands requests of the evaluation to the engine",
}


def test_no_module_makes_prompts_outside_the_places_that_are_compared() -> None:
    known = {name for _, _, found in PLACES.values() for name in found} | set(OTHERS)
    makers = set()
    for name, path in modules().items():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call):
                called = node.func.value if isinstance(node.func, ast.Attribute) else node.func
                if isinstance(called, ast.Name) and called.id in MAKERS:
                    makers.add(name)
    assert makers <= known, f"{sorted(makers - known)}: add them to PLACES of tests/test_one_prompt.py"
    assert known <= set(modules()), "a module was renamed"
