"""Answers that are known to be wrong or right, made from a data set's own questions: what a judge says of them measures the judge.

Wrong and specific: the gold answer of another question of the same type, or the gold with a number, month, name or yes/no
altered. Wrong and vague: it touches the topic and answers nothing; two thirds of such answers passed the usual LoCoMo judge.
Right: the gold answer, bare and in a sentence. Everything is chosen by hashes, so it is the same on every machine.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from memfactory.common.parsing import normalize_squad
from memfactory.evaluation.judge_questions import Question
from memfactory.judges.exact import token_f1
from memfactory.judges.judgment import Case

SPECIFIC, VAGUE, GOLD, SENTENCE = "wrong_specific", "wrong_vague", "right_gold", "right_sentence"
KINDS = (SPECIFIC, VAGUE, GOLD, SENTENCE)
WRONG = (SPECIFIC, VAGUE)

NO_ANSWER = ("single-session-preference",)
"""Types whose gold is a rubric: it is no answer, so nothing known to be right or wrong is made of it."""

_LONG, _SHORT = 12, 4
"""Words of a gold in which a number, and a name, is what the answer turns on."""

_MONTHS = "January February March April May June July August September October November December".split()
_DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
_OPPOSITES = {"yes": "no", "no": "yes", "true": "false", "false": "true"}
_VAGUE = (
    "They talked about something related to {topic}.",
    "It had something to do with {topic}, as far as was mentioned.",
    "There was some mention of {topic} at one point.",
)
_EMPTY = frozenset(
    "a an the and or of to in on at by for with from as is are was were be been do does did has have had will would can could should "
    "what which who whom whose when where why how many much long often old it its this that these those his her their he she they "
    "them him you your i my me we our there than then also after before during about into not no yes".split()
)
_NAME = re.compile(r"\b[A-Z][a-z]{2,}\b")


@dataclass(frozen=True, slots=True)
class Known:
    """An answer that is known to be wrong or right."""

    question: Question
    kind: str
    """One of KINDS."""
    case: Case

    @property
    def place(self) -> tuple[str, str, int, int]:
        """(example, kind, number, question), as the judgments' ledger has it."""
        return (self.question.example, self.kind, 0, self.question.number)


def known_answers(questions: Sequence[Question], number: int) -> list[Known]:
    """Up to four answers to each of `number` questions (fewer if there are not so many), drawn by the hash of their names.

    Questions to abstain on and rubrics are left out. A kind that cannot be made of a question is missing for it.
    """
    usable = [q for q in questions if not q.abstain and q.type not in NO_ANSWER and any(gold.strip() for gold in q.accepted)]
    drawn = sorted(usable, key=lambda q: _draw(q.example, q.number))[:number]
    return [known for question in drawn for known in _answers(question, usable)]


def _answers(question: Question, others: Sequence[Question]) -> Iterator[Known]:
    gold = next(gold for gold in question.accepted if gold.strip())
    # Not as type "": the judge's wording for the type is what is measured.
    texts = {
        SPECIFIC: _specific(question, gold, others),
        VAGUE: _vague(question),
        GOLD: gold,
        SENTENCE: f"The answer is {gold.strip().rstrip('.')}.",
    }
    for kind, text in texts.items():
        if text:
            yield Known(question, kind, replace(question.case(""), answer=text))


def _specific(question: Question, gold: str, others: Sequence[Question]) -> str | None:
    """Every second question gets its own gold altered, the rest another's; each falls back on the other way."""
    seed = _draw(question.example, question.number, "specific")
    altered, another = _altered(gold, others, seed), _another(question, others)
    first, second = (altered, another) if seed % 2 else (another, altered)
    return next((text for text in (first, second) if text and not _says_gold(text, question)), None)


def _another(question: Question, others: Sequence[Question]) -> str | None:
    """The gold of another question that shares no word with this gold.

    Of the same type if there is one, of another conversation, and of a question that begins alike (How many, Who): it must be
    an answer that could be.
    """
    alike = [other for other in others if other.type == question.type]
    apart = [other for other in alike if other.cluster != question.cluster]
    start = _draw(question.text, question.example, question.number)
    begun = [[other for other in apart if _begins(other, words) == _begins(question, words)] for words in (2, 1)]
    for pool in (*begun, apart, alike, others):
        for at in range(len(pool)):
            other = pool[(start + at) % len(pool)]
            gold = next(gold for gold in other.accepted if gold.strip())
            shared = other.text == question.text or any(token_f1(gold, wanted) for wanted in question.accepted)
            if not shared and not _says_gold(gold, question):
                return gold
    return None


def _altered(gold: str, others: Sequence[Question], seed: int) -> str | None:
    """A short gold with one thing changed: yes or no, a number, a month or weekday, or a name; None if it has none of them.

    What begins a text is capital without being a name, and a name in a long text may be by the way: changed, it could stay right.
    """
    if opposite := _OPPOSITES.get(gold.strip().strip(".").lower()):
        return opposite.capitalize() if gold.strip()[0].isupper() else opposite
    if len(gold.split()) > _LONG:
        return None
    if numbers := list(re.finditer(r"\d+", gold)):
        chosen = numbers[seed % len(numbers)]
        return _swapped(gold, chosen, str(int(chosen.group()) + 1 + seed % 4).zfill(len(chosen.group())))
    for names in (_MONTHS, _DAYS):
        if match := re.search(rf"\b({'|'.join(names)})\b", gold):
            return _swapped(gold, match, names[(names.index(match.group()) + 1 + seed % (len(names) - 1)) % len(names)])
    found = [match for match in _NAME.finditer(gold) if match.start() > 0 or len(gold.split()) == 1]
    taken = {*_MONTHS, *_DAYS, *(match.group() for match in found)}
    pool = sorted({text for other in others for text in other.accepted if _NAME.fullmatch(text)} - taken)
    return _swapped(gold, found[-1], pool[seed % len(pool)]) if found and pool and len(gold.split()) <= _SHORT else None


def _swapped(text: str, match: re.Match[str], other: str) -> str:
    return text[: match.start()] + other + text[match.end() :]


def _vague(question: Question) -> str | None:
    """A sentence about the question's last words that say something, without any word of a gold answer."""
    golden = {word for gold in question.accepted for word in normalize_squad(gold).split()}
    words = [word.strip(".,;:!?\"'()") for word in question.text.split()]
    telling = [word for word in words if word and word.lower().removesuffix("'s") not in _EMPTY]
    topic = [word for word in telling if not golden & set(normalize_squad(word).split())]
    return _VAGUE[_draw(question.text) % len(_VAGUE)].format(topic=" ".join(topic[-4:])) if topic else None


def _begins(question: Question, words: int) -> list[str]:
    return question.text.lower().split()[:words]


def _says_gold(text: str, question: Question) -> bool:
    """True if a gold answer stands in the text, as whole words, or the text in a gold answer."""
    said = f" {normalize_squad(text)} "
    golds = [f" {normalize_squad(gold)} " for gold in question.accepted]
    return any(gold.strip() and (gold in said or said in gold) for gold in golds)


def _draw(*parts: object) -> int:
    """A number that depends on the parts alone."""
    return int.from_bytes(hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()[:6], "big")
