"""The words of the tiny world: people, relations, values. One list for all generators and the tiny tokenizer.

Facts are relation-first triples, `city alice paris .`: the object then follows a pair that names it alone, and
copying it is the simplest pattern a small model can learn (docs/tiny.md).
"""

from __future__ import annotations

TRAIN_NAMES = (
    "alice bob carol david emma frank grace henry irene jack karen leo maria nina oscar paula "
    "quinn rosa simon tina ulrich vera walter xenia yara zoe adam bella clara dylan elena felix"
).split()
"""People of training data. All names are seen in supervised pre-training."""

NEW_NAMES = "gina hugo isla jonas kira luke mona noah olga peter rita sven tara uma viktor wendy".split()
"""People that reinforcement learning never sees: for held-out evaluation only."""

VALUES: dict[str, list[str]] = {
    "city": "paris rome oslo cairo lima delhi tokyo madrid berlin vienna prague dublin lisbon athens warsaw boston".split(),
    "job": "baker nurse pilot judge farmer singer doctor lawyer painter teacher sailor tailor driver chef clerk miner".split(),
    "pet": "cat dog parrot rabbit turtle hamster pony ferret goat lizard snake duck gecko mouse canary beagle".split(),
    "hobby": "chess tennis yoga surfing fishing dancing cooking hiking rowing golf skiing poker origami archery knitting karate".split(),
}
"""What a relation can hold."""

PERSON_RELATIONS = ["boss", "friend"]
"""Relations whose value is another person: the bridges of two-hop questions."""

RELATIONS = [*VALUES, *PERSON_RELATIONS]

# Planned for the memory-bank and reranking stages, so that they need no new embedding rows: operations, item ids,
# dialogue words. The echo stage of pre-training copies all of them.
OPERATIONS = "ADD UPDATE DEL NONE DELETE Add Merge Answer".split()
NUMBERS = [str(n) for n in range(32)]
DIALOGUE = (
    "unknown none new now is was my your his her the a of and or not no yes what who when where which before after "
    "forget remember joke maybe saw likes moved said day session user assistant memory fact facts question answer "
    "keep useful bank question: answer: } { [ ] ( ) , : ; - = \" ' / * **Answer:** [] {}"
).split()

FIXED = ["\\boxed{", ".", "?", "!"]


def words() -> list[str]:
    """Every word with its own token, in a fixed order, without repeats."""
    values = [value for some in VALUES.values() for value in some]
    parts = [FIXED, RELATIONS, TRAIN_NAMES, NEW_NAMES, values, OPERATIONS, NUMBERS, DIALOGUE]
    return list(dict.fromkeys(word for part in parts for word in part))
