"""Reading what a model wrote: thoughts, boxes, normal forms. Pure functions on text; knows no prompt and no reward."""

from __future__ import annotations

import re
import string
from collections import deque
from functools import lru_cache

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


_NO_ANSWER = re.compile(
    r"(?:i'?m|i am|we'?re|we are) (?:very |so |really |truly )?sorry\b|sorry,|as an ai\b|i apologi[sz]e\b|"
    r"(?:unfortunately,? )?i (?:can'?t|cannot|can not|could not|couldn'?t|am unable to|was unable to|do not|don'?t|did not|didn'?t) "
    r"(?:help|assist|find|see|extract|identify|provide|comply|process|answer|have (?:any|enough|access))\b|"
    r"(?:unfortunately,? )?(?:there(?:'?s| is| are| was| were) )?(?:nothing|no (?:\w+ ){0,2}(?:facts?|information|memor(?:y|ies)|"
    r"details?))\b"
    r"[^.]*\b(?:remember|memor|record|stor(?:e|ing)|sav(?:e|ing)|note|extract|mention|found|report|worth)\w*|"
    r"(?:很|非常)?(?:抱歉|对不起|對不起)|作为(?:一个|一個)?(?:ai|人工智能)|我(?:无法|無法|不能)(?:帮|幫|协助|協助|提取|回答|提供|"
    r"处理|處理)|"
    r"(?:(?:这段|這段|此)?(?:对话|對話)(?:中|里|裡)?)?(?:并|並)?(?:没有|沒有|无|無)[^。]*(?:记住|記住|事实|事實|信息|資訊|记忆|記憶|"
    r"记录|記錄)|"
    r"(?:大変)?申し訳|すみません|(?:特に)?(?:覚える|記憶す|記録す)[^。]*(?:ありません|ない|なし)|죄송|기억할[^.]*없|"
    r"lo siento\b|no hay (?:nada|hechos|información)\b|désolée?\b|il n'y a (?:rien|aucun)|es tut mir leid|es gibt (?:nichts|"
    r"keine fakten)|"
    r"извините|простите|нет (?:фактов|ничего)|нечего (?:запо|сохр)|آسف|عذرا|لا (?:يوجد|توجد) (?:حقائق|معلومات|شيء|ما)|क्षमा करें|"
    r"ขออภัย|ขอโทษ",
    re.IGNORECASE,
)
_LONGEST_REFUSAL = 300


def says_nothing(text: str) -> bool:
    """True for an apology, a refusal or "nothing to remember" in one short paragraph: prose about the task, no memory and no fact."""
    plain = text.strip().replace("’", "'")
    return len(plain) <= _LONGEST_REFUSAL and "\n\n" not in plain and _NO_ANSWER.match(plain) is not None


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


@lru_cache(maxsize=64)  # an answer is compared with each of several gold answers
def normalize_squad(text: str, articles: str = "a|an|the") -> str:
    """SQuAD's normal form: lower case, no punctuation, no articles, single spaces (Rajpurkar et al., 2016).

    `articles`: a pattern of the words that do not count; LoCoMo's form leaves out `and` too.
    """
    text = text.lower().translate(_NO_PUNCTUATION)
    return " ".join(re.sub(rf"\b({articles})\b", " ", text).split())
