"""Special tokens never come from text, text streams whole, and kinds of tokenizers that do not fit are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sarto.engine.rendering.tokenizer import ChatTokenizer, TokenDecoder
from sarto.errors import FailedPrecondition
from tests.engine.conversations import FAMILIES, FAMILY_NAMES

LOADED = {name: ChatTokenizer.load(FAMILIES / name) for name in FAMILY_NAMES}


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_text_that_spells_a_special_token_stays_text(family: str) -> None:
    tokenizer = LOADED[family]
    for special, number in tokenizer.special_ids.items():
        ids = tokenizer.encode(f"a {special} b")
        assert number not in ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == f"a {special} b"


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_streamed_text_is_the_decoded_text(family: str) -> None:
    tokenizer = LOADED[family]
    ids = tokenizer.encode("Hi 漢字 😀 naïve\n\n  fin")
    stream = tokenizer.stream()
    parts = [stream.push(number) for number in ids]
    assert "".join(parts) + stream.flush() == tokenizer.decode(ids)
    assert all("\ufffd" not in part for part in parts)


def test_a_stream_that_ends_inside_a_character_shows_it_as_unknown() -> None:
    tokenizer = LOADED["smollm2"]
    ids = tokenizer.encode("😀")[:-1]
    stream = tokenizer.stream()
    assert [stream.push(number) for number in ids] == [""] * len(ids)
    assert set(stream.flush()) == {"\ufffd"}


def test_end_of_turn_tokens_come_from_configuration_and_template() -> None:
    for family, closing in (("smollm2", "<|im_end|>"), ("llama3", "<|eot_id|>"), ("gemma3", "<end_of_turn>")):
        assert LOADED[family].special_ids[closing] in LOADED[family].end_of_turn_ids


def test_digest_names_tokenizer_and_template(tmp_path: Path) -> None:
    def copy(name: str, change: tuple[str, str] | None) -> str:
        folder = tmp_path / name
        folder.mkdir()
        for file in (FAMILIES / "smollm2").iterdir():
            text = file.read_text()
            (folder / file.name).write_text(text.replace(*change) if change else text)
        return ChatTokenizer.load(folder).digest

    assert copy("same", None) == LOADED["smollm2"].digest
    assert copy("other", ("small helpful", "little helpful")) != LOADED["smollm2"].digest


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d["added_tokens"][1].update(lstrip=True), "absorbs the spaces"),
        (lambda d: d.update(normalizer={"type": "Prepend", "prepend": "_"}), "puts a space in front"),
    ],
)
def test_a_kind_of_tokenizer_that_cannot_be_cut_is_refused(tmp_path: Path, change: Any, words: str) -> None:
    for name in ("config.json", "chat_template.jinja"):
        (tmp_path / name).write_text((FAMILIES / "smollm2" / name).read_text())
    description = json.loads((FAMILIES / "smollm2" / "tokenizer.json").read_text())
    change(description)
    (tmp_path / "tokenizer.json").write_text(json.dumps(description))
    with pytest.raises(FailedPrecondition, match=words):
        ChatTokenizer.load(tmp_path)


def test_an_unknown_way_of_splitting_is_encoded_whole(tmp_path: Path) -> None:
    for name in ("config.json", "chat_template.jinja"):
        (tmp_path / name).write_text((FAMILIES / "smollm2" / name).read_text())
    description = json.loads((FAMILIES / "smollm2" / "tokenizer.json").read_text())
    odd = {"type": "Split", "pattern": {"Regex": "a b|."}, "behavior": "Isolated", "invert": False}
    description["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [odd, {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}]}  # fmt: skip # noqa: E501
    (tmp_path / "tokenizer.json").write_text(json.dumps(description))
    tokenizer = ChatTokenizer.load(tmp_path)
    assert not tokenizer.splits_at_spaces
    assert tokenizer.decode(tokenizer.encode("xa bx")) == "xa bx"


def test_a_template_that_never_closes_a_reply_is_refused(tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_text((FAMILIES / "smollm2" / name).read_text())
    (tmp_path / "chat_template.jinja").write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    with pytest.raises(FailedPrecondition, match="cannot be tuned on"):
        ChatTokenizer.load(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{% for m in messages %}")
    with pytest.raises(FailedPrecondition, match="does not compile"):
        ChatTokenizer.load(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(FailedPrecondition, match="no chat template"):
        ChatTokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("decoder", "words"),
    [
        ({"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": ""}, "replaces a pattern"),
        ({"type": "Replace", "pattern": {"String": "a"}, "content": "b" * 1000}, "inserts a long text"),
    ],
)
def test_a_decoder_that_could_take_time_beside_others_is_refused(
    tmp_path: Path, decoder: dict[str, object], words: str
) -> None:
    shutil.copytree(FAMILIES / "smollm2", tmp_path, dirs_exist_ok=True)
    file = tmp_path / "tokenizer.json"
    described = json.loads(file.read_text())
    described["decoder"] = {"type": "Sequence", "decoders": [described["decoder"], decoder]}
    file.write_text(json.dumps(described))
    for load in (ChatTokenizer.load, TokenDecoder.of):
        with pytest.raises(FailedPrecondition, match=words):
            load(tmp_path)


def test_a_token_of_any_length_is_refused(tmp_path: Path) -> None:
    shutil.copytree(FAMILIES / "smollm2", tmp_path, dirs_exist_ok=True)
    file = tmp_path / "tokenizer.json"
    described = json.loads(file.read_text())
    described["added_tokens"][-1]["content"] = "<" + "x" * 5000 + ">"
    file.write_text(json.dumps(described))
    with pytest.raises(FailedPrecondition, match="a token of"):
        TokenDecoder.of(tmp_path)
