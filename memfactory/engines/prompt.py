"""Messages as token ids. Control tokens come from the chat template alone: nothing that stands in a message is ever encoded as one.

A mark such as `<|im_end|>` in a message is broken by a character of no width, which leaves it readable and makes it plain text. What
came out is counted against the same conversation with empty words, whatever the tokenizer does to its input first. A text without
marks is encoded as it always was.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from transformers import PreTrainedTokenizerBase

from memfactory.common.text import mend
from memfactory.common.types import Messages
from memfactory.engines.template import template_options

_MARKS = re.compile(r"<\|[^|<>\s]+\|>|<｜[^｜<>\s]+｜>|\[/?[A-Z_]{3,}\]|<</?SYS>>|</?[a-z]+_of_[a-z]+>")
"""Marks that a template may write as plain text, where a tokenizer has no token for them."""
_CONTROL = re.compile(r"[<\[].*[>\]]\s*", re.DOTALL)
_OPENING = re.compile(r"(?<=[<\[＜［〈])")
BREAKS = ("\u200b", " ")
"""Put behind a mark's first character: of no width; or, for tokenizers that drop such, a space."""


def encode_messages(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> tuple[int, ...]:
    """The prompt's token ids under the model's chat template, thinking switched off where the template can."""
    ids = _templated(tokenizer, messages)
    template = str(tokenizer.chat_template)
    control, marks = _control_of(tokenizer, template)
    roles = tuple(str(message["role"]) for message in messages)
    wanted = _skeleton(tokenizer, template, roles)
    if not any(marks.search(message["content"]) for message in messages) and _count(ids, control) == wanted:
        return ids
    for harmless in (
        *((lambda text, gap=gap: marks.sub(lambda mark: mark[0][0] + gap + mark[0][1:], text)) for gap in BREAKS),
        *((lambda text, gap=gap: _OPENING.sub(gap, text)) for gap in BREAKS),
        lambda text: re.sub(r"[<>|\[\]＜＞［］｜〈〉]", " ", text),
    ):
        ids = _templated(tokenizer, [{**message, "content": harmless(message["content"])} for message in messages])
        if _count(ids, control) == wanted:
            return ids
    return ids  # the template itself writes more of them for these messages


def encode_plain(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """A text's token ids without a special token, whatever stands in it."""
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids)


def cut(tokenizer: PreTrainedTokenizerBase, text: str, size: int) -> list[str]:
    """A text in pieces of `size` tokens, by a fast tokenizer; half characters are mended, no other is broken or lost."""
    text = mend(text)[0]
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    # Tokens of one character (bytes) share its offsets: a border inside it moves on to where the next character begins.
    starts = [0]
    for at in range(size, len(offsets), size):
        border = offsets[at][0] if offsets[at][0] >= offsets[at - 1][1] else offsets[at][1]
        starts.append(max(border, starts[-1]))
    pieces = [text[a:b] for a, b in zip(starts, [*starts[1:], len(text)], strict=True)]
    return [piece for piece in pieces if piece]


def _templated(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> tuple[int, ...]:
    ids: Any = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **template_options(tokenizer))
    return tuple(ids)


def _count(ids: tuple[int, ...], control: frozenset[int]) -> int:
    return sum(id in control for id in ids)


@lru_cache(maxsize=8)
def _control_of(tokenizer: PreTrainedTokenizerBase, template: str) -> tuple[frozenset[int], re.Pattern[str]]:
    """(ids of control tokens, what their texts look like): special tokens, and those that the template writes."""
    texts: set[str] = set(_MARKS.findall(template))
    ids: set[int] = set()
    for id, token in tokenizer.added_tokens_decoder.items():
        text = str(token)
        if id != tokenizer.unk_token_id and len(text) > 2 and _CONTROL.fullmatch(text) and (token.special or text in template):
            ids.add(id)
            texts.add(text)
    longest_first = sorted(texts, key=lambda text: (-len(text), text))
    return frozenset(ids), re.compile("|".join(map(re.escape, longest_first)) or r"(?!)", re.IGNORECASE)


@lru_cache(maxsize=64)
def _skeleton(tokenizer: PreTrainedTokenizerBase, template: str, roles: tuple[str, ...]) -> int:
    """How many control tokens a conversation of these roles has, whatever is said."""
    control, _ = _control_of(tokenizer, template)
    return _count(_templated(tokenizer, [{"role": role, "content": "x"} for role in roles]), control)
