"""What a model family's chat template and tokenizer decide beside the words: the date that a prompt shows, and the marks of a thought.

Marks are made `<think>` and `</think>`, which is all that parsers know. They can be special tokens, which decoding drops: then a thought
would pass for an answer, and become memory. Knows no engine and no role.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache, lru_cache
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from memfactory.common.errors import ConfigError
from memfactory.common.settings import load_settings

OPEN, CLOSE = "<think>", "</think>"

KNOWN = (
    (OPEN, CLOSE), ("[THINK]", "[/THINK]"), ("<seed:think>", "</seed:think>"), ("<thinking>", "</thinking>"), ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"), ("<|begin_of_thought|>", "<|end_of_thought|>"), ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("◁think▷", "◁/think▷"), ("<|channel>thought", "<channel|>"), ("<unused94>thought", "<unused95>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
)  # fmt: skip
"""(begins, ends) a thought; a template's own marks of the form <x> and </x> are found by their names."""

_TAG = re.compile(r"([<\[◁]\|?)(/?)([\w:.-]*(?:think|thought|reason)[\w:.-]*)(\|?[>\]▷])", re.IGNORECASE)
_CHANNEL = "<|channel|>"
_FRAME = ("<|start|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>", "<|constrain|>", _CHANNEL)
"""Harmony's tokens: a message is `<|start|>assistant<|channel|>NAME<|message|>...<|end|>`; all channels but `final` are thoughts."""
_HEAD = re.compile(r"<\|channel\|>\s*(\w*)(?:(?!<\|message\|>|<\|channel\|>).)*(?:<\|message\|>|\Z)", re.DOTALL)
_REST = re.compile(r"<\|start\|>\w*|<\|(?:end|return|call|message|constrain)\|>")


_DATE_PARTS = tuple(f"%{sign}{letter}" for sign in ("", "-") for letter in "YymdBbhAaHIMSpjeuwUWVGDFTRcxX")


@cache
def today() -> datetime:
    """The date that templates are told: MEMFACTORY_TODAY, else one that never changes. The real one would make every day another prompt."""
    said = load_settings().memfactory_today or "2025-01-01"
    try:
        return datetime.strptime(said, "%Y-%m-%d")
    except ValueError as error:
        raise ConfigError(f"MEMFACTORY_TODAY is {said!r}: write a date as 2025-01-01, or unset it.") from error


def _of_today(part: str) -> str:
    said = today().strftime(part.replace("-", ""))
    return (said.lstrip("0") or "0") if "-" in part else said


def template_options(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """How a prompt is rendered: the answer opened, thinking switched off where the template can, a fixed date where it shows one."""
    options: dict[str, Any] = {"add_generation_prompt": True, "enable_thinking": False}
    template = str(tokenizer.get_chat_template())
    if "strftime_now" in template:  # the name of transformers' clock, which a macro hides; the line's end goes with the macro
        said = "".join(f" | replace('{part}', '{_of_today(part)}')" for part in _DATE_PARTS)
        options["chat_template"] = f"{{%- macro strftime_now(said) -%}}{{{{- said{said} -}}}}{{%- endmacro %}}\n{template}"
    return options


def rendered(tokenizer: PreTrainedTokenizerBase | None) -> str | None:
    """A prompt as the template makes it: two attempts are alike only if theirs are. None without a template."""
    if tokenizer is None or not tokenizer.chat_template:
        return None
    return _rendered(tokenizer, template_options(tokenizer))


def _rendered(tokenizer: PreTrainedTokenizerBase, options: dict[str, Any]) -> str:
    try:
        return str(tokenizer.apply_chat_template([{"role": "user", "content": "What?"}], tokenize=False, **options))
    except TemplateError as error:  # the template's own words: not every one takes a message of the user alone
        return f"{type(error).__name__}: {error}"


@dataclass(frozen=True, slots=True)
class Thoughts:
    """The marks of one tokenizer with one template."""

    marks: tuple[tuple[str, str], ...]
    special: dict[int, str]
    """Special tokens that a mark has, which decoding must keep."""
    named: bool
    """True if the template names a mark at all."""
    opened: bool
    """True if the template itself begins a thought at the end of every prompt."""

    def text(self, tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
        """The tokens as text without special ones, thoughts in `<think>` and `</think>`."""
        parts, start = [], 0
        for at, token in enumerate(ids):
            if token in self.special:
                parts += [_decoded(tokenizer, ids[start:at]), self.special[token]]
                start = at + 1
        return canonical("".join([*parts, _decoded(tokenizer, ids[start:])]), self.marks)

    def open_after(self, tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int]) -> bool:
        """Whether the model continues a thought that the prompt began."""
        if self.opened or not self.named:
            return self.opened
        return canonical(str(tokenizer.decode(list(prompt[-12:]))), self.marks).rstrip().endswith(OPEN)


@lru_cache(maxsize=8)
def thoughts_of(tokenizer: PreTrainedTokenizerBase, template: str) -> Thoughts:
    """The marks that a template or the tokens of a tokenizer name."""
    tokens = {number: str(token) for number, token in getattr(tokenizer, "added_tokens_decoder", {}).items()}
    hidden = {number for number, token in getattr(tokenizer, "added_tokens_decoder", {}).items() if getattr(token, "special", False)}
    said = "\n".join([template, *tokens.values()])
    tags = {(match[1], match[3], match[4]) for match in _TAG.finditer(said) if match[2]}
    own = [(f"{begin}{name}{end}", f"{begin}/{name}{end}") for begin, name, end in sorted(tags)]
    marks = tuple(dict.fromkeys([*(pair for pair in KNOWN if any(mark in said for mark in pair)), *own, (OPEN, CLOSE)]))
    kept = [mark for pair in marks for mark in pair] + (list(_FRAME) if _CHANNEL in said else [])
    special = {number: tokens[number] for number in hidden if any(tokens[number] and tokens[number] in mark for mark in kept)}
    options = template_options(tokenizer)
    whole, without = (_rendered(tokenizer, options | {"add_generation_prompt": added}) for added in (True, False))
    begun = canonical(whole.removeprefix(without), marks) if whole.startswith(without) else ""
    named = _CHANNEL in template or any(begin in template for begin, _ in marks)
    return Thoughts(marks, special, named, begun.rfind(OPEN) > begun.rfind(CLOSE))


def canonical(text: str, marks: Iterable[tuple[str, str]] = KNOWN) -> str:
    """The text with thoughts in `<think>` and `</think>`, whatever the model's family calls them."""
    for begin, end in marks:
        text = text.replace(begin, OPEN).replace(end, CLOSE)
    if _CHANNEL in text:
        text = _REST.sub("", _HEAD.sub(lambda head: CLOSE if head[1] == "final" else OPEN, text))
    return text


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=True)) if ids else ""
