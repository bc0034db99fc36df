"""Reading what a model wrote: thoughts, boxes, normal forms. Pure functions on text; knows no prompt and no reward."""

from __future__ import annotations

import re
import string
from collections import deque

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_SPACED, _BOXED, _FBOX = (re.compile(rf"\\{name}", re.IGNORECASE) for name in ("boxed ", "boxed", "fbox"))


def strip_thinking(text: str, opened: bool = False) -> str | None:
    """The text after the model's thought, or None if a thought was begun and never closed.

    `opened`: the prompt itself ended inside `<think>`, so only `</think>` appears in the text.
    """
    head, closed, tail = text.rpartition("</think>")
    if closed:
        # A new thought may be opened after the last closed one and cut off.
        return None if "<think>" in tail else tail.strip()
    if opened or "<think>" in text:
        return None
    return text.strip()


def last_boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{...}` (balanced braces), or None: what MemAgent's `last_boxed_only_string` and `remove_boxed` find.

    So a `\boxed ` with a space, where there is one, goes before all others and holds the rest of the text, up to a `$`; and a box that is
    not opened at once or never closed is none, whatever stands before it. `\fbox{...}` is looked for where no `\boxed` is.
    """
    if spaced := _last(_SPACED, text):
        return text[spaced.end() :].split("$")[0].strip() or None
    box = _last(_BOXED, text) or _last(_FBOX, text)
    if box is None or text[box.end() : box.end() + 1] != "{":
        return None
    depth = 0
    for at in range(box.end(), len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth == 0:
            return text[box.end() + 1 : at].strip()
    return None


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    found = deque(pattern.finditer(text), maxlen=1)
    return found[0] if found else None


ANSWER_MARK = "**Answer:**"


def final_answer(text: str) -> str | None:
    """What an answer says at last: after the last `**Answer:**` (Memory-R1), in the last box there, or all of it; None inside a thought."""
    visible = strip_thinking(text)
    if visible is None:
        return None
    _, marked, tail = visible.rpartition(ANSWER_MARK)
    boxed = last_boxed(tail)
    return boxed if boxed is not None else tail.strip()


def normalize_math(text: str) -> str:
    """MemAgent's normal form of an answer: lower case, LaTeX spelling differences and all spaces removed.

    Articles and punctuation stay (the rule of MemAgent's reward, arXiv 2507.02259, after MATH's).
    """
    text = text.lower()
    for old, new in (("\n", ""), ("\\!", ""), ("\\\\", "\\"), ("tfrac", "frac"), ("dfrac", "frac"), ("\\left", ""), ("\\right", ""),
                     ("^{\\circ}", ""), ("^\\circ", ""), ("\\$", ""), ("\\%", ""), (" .", " 0."), ("{.", "{0.")):  # fmt: skip
        text = text.replace(old, new)
    text = text.strip()
    if text.startswith("."):
        text = "0" + text
    return text.replace(" ", "")


def normalize_squad(text: str, articles: str = "a|an|the") -> str:
    """SQuAD's normal form: lower case, no punctuation, no articles, single spaces (Rajpurkar et al., 2016).

    `articles`: a pattern of the words that do not count; LoCoMo's form leaves out `and` too.
    """
    text = text.lower().translate(_NO_PUNCTUATION)
    return " ".join(re.sub(rf"\b({articles})\b", " ", text).split())
