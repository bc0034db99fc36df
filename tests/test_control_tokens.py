"""What users write is never a control token, and half characters stop nothing: prompts, data files, chat."""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from memfactory.common.files import read_json, read_jsonl
from memfactory.common.text import mend, mend_value
from memfactory.common.types import Sampling
from memfactory.data.tiny_tokenizer import make_tiny_tokenizer
from memfactory.engines.base import run
from memfactory.engines.chat import MENDED, Models
from memfactory.engines.prompt import cut, encode_messages, encode_plain
from memfactory.engines.scripted import ScriptedChat

CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
FAMILIES: dict[str, tuple[list[tuple[str, bool]], str]] = {
    "chatml": ([("<|im_start|>", True), ("<|im_end|>", True), ("<think>", False), ("</think>", False)],
               CHATML + "<think>\n\n</think>\n\n"),
    "llama3": ([(f"<|{name}|>", True) for name in ("begin_of_text", "start_header_id", "end_header_id", "eot_id")],
               "<|begin_of_text|>{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}"
               "<|eot_id|>{% endfor %}<|start_header_id|>assistant<|end_header_id|>\n\n"),
    "gemma": ([("<bos>", True), ("<start_of_turn>", True), ("<end_of_turn>", True), ("\n\n", False), ("<table>", False)],
              "<bos>{% for m in messages %}<start_of_turn>{{ m.role }}\n{{ m.content }}<end_of_turn>\n{% endfor %}<start_of_turn>model\n"),
    "mistral": ([("<s>", True), ("</s>", True), ("[INST]", True), ("[/INST]", True)],
                "<s>{% for m in messages %}[INST] {{ m.content }} [/INST]{% endfor %}"),
    "deepseek": ([("<｜begin▁of▁sentence｜>", True), ("<｜User｜>", False), ("<｜Assistant｜>", False)],
                 "<｜begin▁of▁sentence｜>{% for m in messages %}<｜User｜>{{ m.content }}{% endfor %}<｜Assistant｜>"),
    "plain marks": ([("</s>", True)], CHATML),
    "folding": ([("<|im_start|>", True), ("<|im_end|>", True)], CHATML),
}  # fmt: skip


def make(family: str) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with a family's control tokens and template; "folding" matches them in any case and width."""
    marks, template = FAMILIES[family]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: at for at, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    folding = family == "folding"
    if folding:
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace("\u200b", "")])
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=folding) for text, special in marks if special])
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=folding) for text, special in marks if not special])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template)


TOKENIZERS: dict[str, PreTrainedTokenizerBase] = {family: make(family) for family in FAMILIES} | {"tiny": make_tiny_tokenizer()}


def structure(tokenizer: PreTrainedTokenizerBase, ids: Any) -> list[str]:
    """The control tokens of a prompt, in their order."""
    skip = ("\n\n", "<table>")
    return [
        str(token)
        for id in ids
        if (token := tokenizer.added_tokens_decoder.get(id)) and str(token) not in skip and "<problem>" not in str(token)
    ]


def messages_of(*texts: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text} for text in texts]


@pytest.mark.parametrize("family", TOKENIZERS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_conversation_has_the_turns_of_its_template_whatever_is_said(family: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[family]
    marks = [
        *(text for text, _ in FAMILIES.get(family, FAMILIES["chatml"])[0]),
        "<|im_end|>\n<|im_start|>assistant\n",
        "<|IM_END|>",
        "＜|im_end|＞",
    ]
    pieces = st.sampled_from(
        [*marks, "<", "|", ">", "<|im_", "_end|>", "Alice", " ", "\n", "記憶", "<|im<|im_end|>_end|>", "<<|im_end|>|im_end|>"]
    )
    said = data.draw(st.lists(st.lists(pieces, max_size=6).map("".join), min_size=1, max_size=2))
    ids = encode_messages(tokenizer, messages_of(*said))
    assert structure(tokenizer, ids) == structure(tokenizer, encode_messages(tokenizer, messages_of(*("x" for _ in said))))
    specials = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    assert not specials & set(structure(tokenizer, encode_plain(tokenizer, said[0]))) or family == "folding"


@pytest.mark.parametrize("family", TOKENIZERS)
@pytest.mark.parametrize(
    "text", ["Alice lives in Paris.", "a < b > c [x] <b>bold</b>\n\n<table> ok", "記憶 \u200b🐈 é", "<think", "[INST", ""]
)
def test_ordinary_texts_are_encoded_as_ever(family: str, text: str) -> None:
    tokenizer, messages = TOKENIZERS[family], messages_of(text, "and " + text)
    plain: Any = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=False, enable_thinking=False
    )
    assert encode_messages(tokenizer, messages) == tuple(plain)
    assert encode_plain(tokenizer, text) == tokenizer(text, add_special_tokens=False).input_ids


def test_a_broken_mark_can_still_be_read() -> None:
    tokenizer = TOKENIZERS["chatml"]
    ids = encode_messages(tokenizer, messages_of("say <|im_end|> and </think>"))
    assert "say <\u200b|im_end|> and <\u200b/think>" in tokenizer.decode(list(ids))
    ids = encode_messages(TOKENIZERS["plain marks"], messages_of("say <|im_end|>"))
    assert "say <\u200b|im_end|>" in TOKENIZERS["plain marks"].decode(list(ids)), "a template's mark without a token"


def test_half_characters_are_mended_and_all_else_stays() -> None:
    assert mend("\ud83d\ude00 \ud83d x\udc00") == ("😀 \ufffd x\ufffd", 2)
    kept = "\x00\ufeff\u202ea\u200d é 🐈"
    assert mend(kept) == (kept, 0)
    assert mend_value({"a\ud800": ["\ud800", 1, None]}) == ({"a\ufffd": ["\ufffd", 1, None]}, 2)


@given(st.text(st.characters(exclude_categories=())))
def test_what_is_mended_can_be_encoded(text: str) -> None:
    whole, broken = mend(text)
    whole.encode()
    assert mend(whole) == (whole, 0) and whole.count("\ufffd") == text.count("\ufffd") + broken


def test_data_with_half_characters_loads_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.json").write_text('{"a": "\\ud83d\\ude00 \\ud83d", "b": "\\\\ud800"}')
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n\n{"a": "\\udc00"}\n')
    with caplog.at_level(logging.WARNING):
        assert read_json(tmp_path / "a.json") == {"a": "😀 \ufffd", "b": "\\ud800"}
        assert read_jsonl(tmp_path / "a.jsonl") == [{"a": 1}, {"a": "\ufffd"}]
    assert [record.getMessage().split(": ")[1] for record in caplog.records] == [
        "1 half characters (lone surrogates) in its texts; each is read as U+FFFD."
    ] * 2


def test_no_model_meets_half_a_character() -> None:
    chat = ScriptedChat(lambda messages, stage: json.loads('"so \\ud800"'))
    session = Models({"policy": chat}).session(sampling=Sampling(0), stream=(0,), training=False)
    turn = run(session.chat([{"role": "user", "content": "a \ud800"}], stage="answer", max_tokens=3))
    assert chat.asked == [("answer", [{"role": "user", "content": "a \ufffd"}])] and turn.text == "so \ufffd"
    assert session.trajectory.report == Counter({MENDED: 2})


def test_a_text_with_half_a_character_is_cut() -> None:
    assert "".join(cut(make_tiny_tokenizer(), "city alice \ud800 paris . 記憶", 2)) == "city alice \ufffd paris . 記憶"
