"""Published answer scorers, each to the letter of its public code, with a version in its key: a score that changes gets a new key.

They read the final answer (after **Answer:**, in a box, or the whole text) and take the best of several gold answers; a thought
that does not end scores 0. `*_locomo` are LoCoMo's own (arXiv 2402.17753, task_eval/evaluation.py), `*_mem0` those of Mem0's
evaluation (arXiv 2504.19413), which Memory-R1 reports too: never compare a number of one with a number of the other. LoCoMo's
categories stay numbers; Mem0's code has swapped their names and leaves category 5 out. Knows no benchmark's file and no average.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache, lru_cache

from memfactory.common.errors import unknown_name
from memfactory.common.parsing import final_answer, normalize_squad
from memfactory.common.registry import SCORER_REGISTRY
from memfactory.judges.exact import best_of, overlap_f1, token_f1

ABSTENTIONS = ("no information available", "not mentioned")
"""What LoCoMo's code takes for abstaining. `unknown` and the like are not among them: ask for one of these in the prompt."""

_MEM0_SPACES = str.maketrans(".,!?", "    ")
"""The only punctuation that Mem0's words are split at; the rest stays on them."""


_LONGEST = 1 << 15
"""Characters of an answer that is stemmed or tokenised, which is slow. A longer one scores 0; it could not score a hundredth."""


@SCORER_REGISTRY.register("f1_locomo@1")
def f1_locomo(text: str, golds: Sequence[str]) -> float:
    """LoCoMo's F1 (categories 2 and 4): stems of the words but a, an, the and `and`, each as often as both sides have it."""
    return best_of(_stem_f1, _bounded(text), golds)


@SCORER_REGISTRY.register("f1_locomo_multi@1")
def f1_locomo_multi(text: str, golds: Sequence[str]) -> float:
    """LoCoMo's F1 for several answers in one (category 1): the mean over the gold's parts of the best F1 with a part of the answer.

    Parts lie between commas. It is a recall of parts: nothing is lost by parts that nobody asked for.
    """
    return best_of(_parts_f1, _bounded(text), golds)


def locomo_f1(text: str, golds: Sequence[str], category: str | int) -> float:
    """LoCoMo's score of a question by its category, the `type` that `data/locomo.py` gives it: "1" to "5".

    3 looks at the gold up to its first `;` (a reason follows). 5 is 1 for an abstention and looks at no gold: the file has
    none, or what the loader put there. Another category raises `UnknownNameError`.
    """
    rule = _BY_CATEGORY.get(str(category))
    if rule is None:
        raise unknown_name("LoCoMo category", str(category), _BY_CATEGORY, "It is the `type` of the question.")
    return rule(text, golds)


@SCORER_REGISTRY.register("f1_mem0@1")
def f1_mem0(text: str, golds: Sequence[str]) -> float:
    """Mem0's F1: of the two sets of lower-case words, split at spaces and . , ! ? only. A repeated word counts once."""
    return best_of(lambda said, gold: overlap_f1(_mem0_words(said), _mem0_words(gold)), final_answer(text), golds)


@SCORER_REGISTRY.register("bleu1_mem0@1")
def bleu1_mem0(text: str, golds: Sequence[str]) -> float:
    """Mem0's BLEU-1 of the lower-case tokens: nltk's sentence_bleu with weights (1, 0, 0, 0), which no smoothing touches.

    Mem0 calls nltk's word_tokenize, which needs the Punkt model from the network; this is word_tokenize(preserve_line=True),
    without it. They differ where Punkt sees several sentences: a full stop that ends an inner one stays on its word here. On
    two published LoCoMo runs that was 20 of 3,080 scores, by .051 at the most, and the means moved by less than .0001.
    """
    return best_of(_bleu1, _bounded(text), golds)


@SCORER_REGISTRY.register("em_squad@1")
def em_squad(text: str, golds: Sequence[str]) -> float:
    """SQuAD's exact match (arXiv 1606.05250), HotpotQA's too: 1 if the normal forms are equal, empty ones included.

    So an A is right where the gold is A, which `answer_em` denies, and silence where the gold is empty.
    """
    return best_of(lambda said, gold: float(normalize_squad(said) == normalize_squad(gold)), final_answer(text), golds)


@SCORER_REGISTRY.register("f1_hotpot@1")
def f1_hotpot(text: str, golds: Sequence[str]) -> float:
    """HotpotQA's F1 (arXiv 1809.09600): words in SQuAD's normal form; yes, no and noanswer count whole."""
    return best_of(token_f1, final_answer(text), golds)


@SCORER_REGISTRY.register("f1_squad@1")
def f1_squad(text: str, golds: Sequence[str]) -> float:
    """SQuAD's F1 (arXiv 1606.05250), MuSiQue's too: words in its normal form; where one side has none, 1 if the other has none either."""

    def rule(said: str, gold: str) -> float:
        answer, wanted = normalize_squad(said).split(), normalize_squad(gold).split()
        return overlap_f1(answer, wanted) if answer and wanted else float(answer == wanted)

    return best_of(rule, final_answer(text), golds)


@SCORER_REGISTRY.register("f1_locomo_open@1")
def f1_locomo_open(text: str, golds: Sequence[str]) -> float:
    """LoCoMo's F1 for open questions (category 3): the gold is what stands before its first `;`, a reason follows."""
    return f1_locomo(text, [str(gold).split(";")[0] for gold in golds])


@SCORER_REGISTRY.register("abstain_locomo@1")
def abstain_locomo(text: str, golds: Sequence[str]) -> float:
    """LoCoMo's rule for its adversarial questions (category 5): 1 if one of two phrases stands in the answer; the gold does not count."""
    said = (final_answer(text) or "").lower()
    return float(any(phrase in said for phrase in ABSTENTIONS))


_BY_CATEGORY: dict[str, Callable[[str, Sequence[str]], float]] = {
    "1": f1_locomo_multi, "2": f1_locomo, "3": f1_locomo_open, "4": f1_locomo, "5": abstain_locomo,
}  # fmt: skip


def _bounded(text: str) -> str | None:
    said = final_answer(text)
    return None if said is None or len(said) > _LONGEST else said


def _stem_f1(said: str, gold: str) -> float:
    return overlap_f1(_stems(said), _stems(gold))


def _parts_f1(said: str, gold: str) -> float:
    answers, wanted = dict.fromkeys(said.split(",")), gold.split(",")
    return sum(max(_stem_f1(answer, part) for answer in answers) for part in wanted) / len(wanted)


@lru_cache(maxsize=1 << 14)
def _stems(text: str) -> list[str]:
    return [_stem(word) for word in normalize_squad(text, articles="a|an|the|and").split()]


@lru_cache(maxsize=1 << 16)
def _stem(word: str) -> str:
    return _stemmer()(word)


@cache
def _stemmer() -> Callable[[str], str]:
    """Porter's, in nltk's default mode (NLTK_EXTENSIONS), as LoCoMo's code has it."""
    from nltk.stem import PorterStemmer  # not above: importing nltk takes a second

    return PorterStemmer().stem


@cache
def _tokenizer() -> Callable[[str], list[str]]:
    from nltk.tokenize import NLTKWordTokenizer

    return NLTKWordTokenizer().tokenize


@lru_cache(maxsize=64)
def _tokens(text: str) -> list[str]:
    return _tokenizer()(text)


@lru_cache(maxsize=64)
def _mem0_words(text: str) -> set[str]:
    return set(text.lower().translate(_MEM0_SPACES).split())


def _bleu1(said: str, gold: str) -> float:
    """The share of the tokens that the gold has too, as often at the most, times the penalty on an answer shorter than the gold."""
    answer, wanted = (_tokens(side.lower()) for side in (said, gold))
    common = sum((Counter(answer) & Counter(wanted)).values())
    return min(1.0, math.exp(1 - len(wanted) / len(answer))) * common / len(answer) if common else 0.0
