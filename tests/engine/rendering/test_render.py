"""What the renderer promises beyond parity: plans equal full renderings, nothing is dropped, nothing is smuggled in."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sarto.conversations.examples import Example, FunctionCall, FunctionResponse, RowFault, Turn, parse_line
from sarto.conversations.generation_request import conversation_of
from sarto.engine.rendering.chat_template import ChatTemplate
from sarto.engine.rendering.render import (
    is_served,
    pack_row,
    render,
    render_fully,
    render_open,
    render_packed,
    render_prompt,
    replies,
)
from sarto.engine.rendering.template_plans import make_plan
from sarto.engine.rendering.tokenizer import ChatTokenizer
from sarto.engine.rendering.tool_text import split_calls
from sarto.errors import InvalidArgument
from sarto.schema.generation import Content, Tool
from tests.engine.conversations import CASES, FAMILIES, FAMILY_NAMES

LOADED = {name: ChatTokenizer.load(FAMILIES / name) for name in FAMILY_NAMES}
MARKUP = ["</think>", "<think>", "<tool_response>", "</tool_response>", "<|im_end|>", "<eos>", "{{ x }}", "\ufdd2"]
SPELLED = st.lists(st.sampled_from([*MARKUP, "\n", " ", "a"]), min_size=1, max_size=6).map("".join)
TEXT = st.one_of(st.text(min_size=1, max_size=30), SPELLED).filter(
    lambda text: bool(text.strip()) and "\ufdd0" not in text
)
SHAPES = st.sampled_from(
    [("user", "model"), ("system", "user", "model"), ("user", "model", "user", "model"),
     ("system", "user", "model", "user", "model", "user", "model")]
)  # fmt: skip


@pytest.mark.parametrize("family", FAMILY_NAMES)
@settings(max_examples=250, deadline=None, derandomize=True)
@given(data=st.data())
def test_plans_give_what_the_template_gives_and_prompts_are_those_of_serving(family: str, data: st.DataObject) -> None:
    tokenizer = LOADED[family]
    roles = data.draw(SHAPES)
    example = Example(tuple(Turn(role, data.draw(TEXT)) for role in roles))
    try:
        expected = render_fully(example, tokenizer)
    except RowFault as fault:
        with pytest.raises(RowFault, match="saw"):
            render_open(example, tokenizer)
        assert fault.fix
        return
    assert render_packed(example, tokenizer) == [pack_row(row, tokenizer) for row in expected]
    rows = render(example, tokenizer)
    specials = [row.tokens[index] for row in rows for index in range(len(row.tokens)) if row.loss_mask[index]]
    ends = [number for number in specials if number in tokenizer.special_ids.values()]
    assert len(ends) == sum(role == "model" for role in roles), "a reply holds one special token, its end"
    starts = [
        (row.tokens, index)
        for row in rows
        for index in range(len(row.tokens))
        if row.loss_mask[index] and not row.loss_mask[index - 1]
    ]
    for (conversation, turn), (tokens, start) in zip(replies(example), starts, strict=True):
        assert render_prompt(conversation, tokenizer, thinking=tokenizer.template.thinks(turn)) == tokens[:start]


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_every_family_is_planned_for_plain_conversations(family: str) -> None:
    tokenizer = LOADED[family]
    for roles in (("user", "model"), ("system", "user", "model"), ("user", "model", "user", "model")):
        assert make_plan(tokenizer.template, roles, tokenizer.special_pattern) is not None


SHAPES_OF_TEXT = [(*first, *("user", "model") * exchanges) for first in ((), ("system",)) for exchanges in range(1, 6)]


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_for_all_texts_of_a_shape_serving_sends_what_training_has_in_front_of_a_reply(family: str) -> None:
    tokenizer = LOADED[family]
    for roles in SHAPES_OF_TEXT:
        plan = make_plan(tokenizer.template, roles, tokenizer.special_pattern)
        assert plan is not None and is_served(plan, roles, tokenizer)


def test_a_plan_of_another_template_is_not_what_serving_sends() -> None:
    roles = ("system", "user", "model")
    plan = make_plan(LOADED["qwen2"].template, roles, LOADED["qwen2"].special_pattern)
    assert plan is not None
    trimmed = changed("{% for message in messages %}" + TURN % "message['content'] | trim" + "{% endfor %}" + CLOSING)
    assert not is_served(plan, roles, trimmed)


NAMES = st.sampled_from(["get_weather", "f"])
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-9, 9), TEXT),
    lambda inner: st.lists(inner, max_size=2),
    max_leaves=4,
)
OBJECTS = st.dictionaries(TEXT, VALUES, max_size=2)


@st.composite
def conversations(draw: st.DrawFn, with_tools: bool, with_thoughts: bool) -> Example:
    """Turns with calls, responses and thoughts, as rows that were read have them."""
    turns = [Turn("system", draw(TEXT))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        turns.append(Turn("user", draw(TEXT)))
        if with_tools and draw(st.booleans()):
            call = FunctionCall(draw(NAMES), draw(OBJECTS))
            turns.append(Turn("model", draw(st.one_of(st.just(""), TEXT)), (call,)))
            turns.append(Turn("tool", responses=(FunctionResponse(call.name, draw(OBJECTS)),)))
        turns.append(Turn("model", draw(TEXT), thought=draw(TEXT) if with_thoughts and draw(st.booleans()) else ""))
    declared = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}
    return Example(tuple(turns), (declared,) if with_tools else ())


@pytest.mark.parametrize("family", FAMILY_NAMES)
@settings(max_examples=120, deadline=None, derandomize=True)
@given(data=st.data())
def test_calls_responses_and_thoughts_are_served_as_they_are_trained(family: str, data: st.DataObject) -> None:
    tokenizer = LOADED[family]
    thoughts = tokenizer.template.takes_thought
    example = data.draw(st.sampled_from([True, False]).flatmap(lambda tools: conversations(tools, thoughts)))
    try:
        rows = render(example, tokenizer)
    except RowFault as fault:
        assert fault.fix
        return
    starts = [
        (row.tokens, index)
        for row in rows
        for index in range(len(row.tokens))
        if row.loss_mask[index] and not row.loss_mask[index - 1]
    ]
    for (conversation, turn), (tokens, start) in zip(replies(example), starts, strict=True):
        assert render_prompt(conversation, tokenizer, thinking=tokenizer.template.thinks(turn)) == tokens[:start]
    assert all(row.loss_mask[-1] and row.tokens[-1] in tokenizer.end_of_turn_ids for row in rows)


def changed(template: str) -> ChatTokenizer:
    """The chatml tokenizer with another template."""
    folder = FAMILIES / "smollm2"
    return ChatTokenizer(folder, (folder / "tokenizer.json").read_text(), template, {}, [])


TURN = "{{ '<|im_start|>' + message['role'] + '\\n' + %s + '<|im_end|>\\n' }}"
CLOSING = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"


@pytest.mark.parametrize(
    "shown",
    [
        "(message['content'] | upper)",
        "message['content'][:5]",
        "(message['content'] | length | string)",
        "('x' ~ message['content'] | trim)",
        "message['content'].replace('a', 'b')",
        "(message['content'] | tojson)",
    ],
)
def test_a_template_that_works_on_texts_is_never_planned(shown: str) -> None:
    source = "{% for message in messages %}" + TURN % shown + "{% endfor %}" + CLOSING
    try:
        tokenizer = changed(source)
    except Exception as error:  # some change the reply so much that it cannot be tuned on, which is as good
        assert "cannot be tuned on" in str(error)
        return
    assert make_plan(tokenizer.template, ("user", "model"), tokenizer.special_pattern) is None


def test_a_condition_on_the_text_is_asked_again_of_every_row() -> None:
    source = "{% for message in messages %}{% if 'SECRET' in message['content'] %}{{ raise_exception('no secrets') }}"
    tokenizer = changed(source + "{% endif %}" + TURN % "message['content']" + "{% endfor %}" + CLOSING)
    fine = Example((Turn("user", "a"), Turn("model", "b")))
    assert render_packed(fine, tokenizer) == [pack_row(row, tokenizer) for row in render_fully(fine, tokenizer)]
    assert tokenizer.plans[("user", "model")] is not None
    with pytest.raises(RowFault, match="no secrets"):
        render_open(Example((Turn("user", "a SECRET"), Turn("model", "b"))), tokenizer)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_reply_of_weight_0_is_context_only(family: str) -> None:
    """The tokens stay; the mask loses that reply, planned or not, in one row for all replies or one for each."""
    tokenizer = LOADED[family]
    turns: list[dict[str, Any]] = []
    for word, weight in (("one", 1), ("two", 0), ("three", 1)):
        turns += [{"role": "user", "content": f"Say {word}"}, {"role": "assistant", "content": word, "weight": weight}]
    weighed = parse_line(json.dumps({"messages": turns}).encode(), 1)
    plain = Example(weighed.turns, line=1, format="messages")
    assert weighed.masked == (1,) and [turn.text for _, turn in replies(weighed)] == ["one", "three"]
    texts = [
        tokenizer.decode([token for token, on in zip(row.tokens, row.loss_mask, strict=True) if on])
        for row in render(weighed, tokenizer)
    ]
    learned = " ".join(texts)
    assert "one" in learned and "three" in learned and "two" not in learned
    rows, whole = render(weighed, tokenizer), render(plain, tokenizer)
    assert len(rows) == len(whole) or len(rows) == len(whole) - 1
    if len(whole) == 1:
        assert rows[0].tokens == whole[0].tokens
    assert render_packed(weighed, tokenizer) == [pack_row(row, tokenizer) for row in render_fully(weighed, tokenizer)]


def test_a_template_without_system_role_has_it_in_the_first_user_turn() -> None:
    source = "{% for message in messages %}{% if message['role'] == 'system' %}{{ raise_exception('no system') }}"
    tokenizer = changed(source + "{% endif %}" + TURN % "message['content']" + "{% endfor %}" + CLOSING)
    with_system = Example((Turn("system", "Be brief."), Turn("user", "Hi"), Turn("model", "Yo")))
    joined = Example((Turn("user", "Be brief.\n\nHi"), Turn("model", "Yo")))
    assert render(with_system, tokenizer) == render(joined, tokenizer)


def test_tools_are_told_in_the_system_turn_where_the_template_has_no_place() -> None:
    tokenizer = LOADED["smollm2"]
    case = next(case for case in CASES if case.name == "tools")
    example = parse_line(case.line, 1)
    [row] = render(example, tokenizer)
    text = tokenizer.decode(row.tokens, skip_special_tokens=False)
    assert text.count("get_weather") == 3
    assert "<tools>\n{" in text and "<tool_call>\n{" in text and "<tool_response>\n{" in text
    learned = tokenizer.decode([t for t, m in zip(row.tokens, row.loss_mask, strict=True) if m])
    assert learned.startswith("<tool_call>") and learned.endswith("Blue sky.")
    body, calls = split_calls(learned.split("</tool_call>")[0] + "</tool_call>", frozenset(["get_weather"]))
    assert body == "" and calls == list(example.turns[2].calls)


def test_a_thought_is_refused_where_a_model_has_no_place_for_it() -> None:
    case = next(case for case in CASES if case.name == "thought")
    with pytest.raises(RowFault, match="no place for thoughts"):
        render(parse_line(case.line, 5), LOADED["smollm2"])


def test_a_fault_of_the_template_names_the_line() -> None:
    calls = [{"functionCall": {"name": "f", "args": {}}}] * 2
    row = {"contents": [{"role": "user", "parts": [{"text": "a"}]}, {"role": "model", "parts": calls}]}
    with pytest.raises(RowFault, match=r"line 9: .*one call at a time"):
        render(parse_line(json.dumps(row).encode(), 9), LOADED["llama3"])


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_requests_and_rows_read_the_same(family: str) -> None:
    tokenizer = LOADED[family]
    for case in CASES:
        if family not in case.families or case.name == "thought":
            continue
        row: dict[str, Any] = case.row
        contents = [Content.read(content) for content in row["contents"][:-1]]
        system = Content.read(row["systemInstruction"]) if "systemInstruction" in row else None
        tools = [Tool.read(tool) for tool in row.get("tools", ())]
        request = conversation_of(contents, system, tools)
        [*_, (conversation, _)] = replies(parse_line(case.line, 1))
        assert render_prompt(request, tokenizer) == render_prompt(conversation, tokenizer)


def test_a_request_that_ends_with_the_model_is_an_invalid_argument() -> None:
    turns = [Content.read({"role": role, "parts": [{"text": "x"}]}) for role in ("user", "model")]
    with pytest.raises(InvalidArgument, match="a user turn at the end"):
        conversation_of(turns)


def test_every_day_has_the_same_prompt() -> None:
    template = ChatTemplate("{{ strftime_now('%d %b %Y') }}{% for m in messages %}{{ m.content }}{% endfor %}", {})
    assert template.render([{"role": "user", "content": "x"}], [], prompt=True, thinking=False) == "26 Jul 2024x"
