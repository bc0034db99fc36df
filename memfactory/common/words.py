"""The words of a text in any script: what the hashed embedder and BM25 compare. Text alone; knows no memory and no prompt.

ASCII is words in lower case. Other text is brought into one form first (width, accents, vowel points and invisible characters do
not count), and where a script puts no spaces between words its letters and pairs of them stand for words, as in Lucene's CJK
analyzer; a letter there is a base with its marks.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

_WORD = re.compile(r"\w+")
_FUNCTION_WORDS = frozenset(
    "a about am an and are as at be been but by can could did do does for from had has have he her his how i in is it its me my "
    "not of on or our she so that the their them they this to was we were what when where which who why will with would you your s".split()
)
"""Closed-class words of English: without them two sentences are not alike for being sentences."""

_GRAMMAR = (
    "的 了 吗 嗎 呢 吧 啊 是 什么 什麼 哪里 哪裡 哪儿 哪个 哪個 怎么 怎麼 "
    "さんは さんの さんが さんを さんに さんも です でした ます ました ません ています でいます ている でいる ください そうです ですか "
    "ますか どこに どんな なに なん いつ だれ どう どの として から まで より という こと もの "
    "อะไร ที่ไหน เมื่อไหร่ ไหม ครับ ค่ะ ของ คือ เป็น และ อยู่ที่"
)
"""The same for scripts without spaces: particles, endings and question words, of which letters and pairs do not count."""

_SOLID = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Bopomofo}\p{Yi}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}\p{Javanese}ー"
_DROPPED = r"\u0300-\u036f\u0591-\u05c7\u0610-\u061a\u0640\u064b-\u065f\u0670\u06d6-\u06ed\p{Cf}"
"""Accents, vowel points, the stretched joint of Arabic, and what is not seen."""


@dataclass(frozen=True, slots=True)
class _Scripts:
    """What other text than ASCII needs; made when the first such text comes."""

    dropped: Any
    word: Any
    run: Any
    """A part of a word in one kind of script; its group 1 is one without spaces."""
    letter: Any
    grammar: frozenset[str]
    """Letters and pairs that do not count."""


@lru_cache(maxsize=1)
def _scripts() -> _Scripts:
    import regex  # knows scripts and marks; the library re does not

    letter = regex.compile(r"\X")
    phrases = [letter.findall(unicodedata.normalize("NFKC", phrase)) for phrase in _GRAMMAR.split()]
    pairs = {a + b for letters in phrases for a, b in zip(letters, letters[1:], strict=False)}
    kana = {chr(code) for code in range(0x3041, 0x3097)}  # alone they are endings
    return _Scripts(
        regex.compile(f"[{_DROPPED}]"), regex.compile(r"[\p{L}\p{N}\p{M}_]+"),
        regex.compile(rf"([{_SOLID}][{_SOLID}\p{{M}}]*)|[^{_SOLID}]+"), letter,
        frozenset(pairs | kana | {one for letters in phrases for one in letters}),
    )  # fmt: skip


def words_of(text: str) -> list[str]:
    """All words, in their order; equal for texts that differ only in case, width, accents or vowel points."""
    if text.isascii():
        return _WORD.findall(text.lower())
    scripts = _scripts()
    plain = unicodedata.normalize("NFC", scripts.dropped.sub("", unicodedata.normalize("NFKD", text.casefold())))
    words: list[str] = []
    for found in scripts.word.finditer(plain):
        for part in scripts.run.finditer(found.group()):
            letters = scripts.letter.findall(part.group()) if part.group(1) else [part.group()]
            words.append(letters[0])
            for before, letter in zip(letters, letters[1:], strict=False):
                words += [before + letter, letter]
    return words


def content_of(text: str) -> str:
    """A text's words with single spaces between, without those that only hold sentences together unless there is nothing else."""
    words = words_of(text)
    grammar = frozenset() if text.isascii() else _scripts().grammar
    return " ".join([word for word in words if word not in _FUNCTION_WORDS and word not in grammar] or words)
