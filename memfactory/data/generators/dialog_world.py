"""What people of `synth_dialog` say: statements about people, in the tiny world's triples or in English, and how to read them back.

`city alice paris .` and "By the way, Alice lives in Paris." are the same `Statement`. What is written here is read here, so
that data can be checked from their text alone. Knows no dialogue and no memory.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from memfactory.data.generators.world import NEW_NAMES, PERSON_RELATIONS, RELATIONS, TRAIN_NAMES, VALUES

UNKNOWN = "unknown"
"""The gold answer to what was never said, or was taken back."""
RENDERINGS = ("prose", "triples")
SEVERAL = ("pet", "hobby")
"""Relations of which a person can have two at a time."""

Key = tuple[str, str]
"""(relation, person)."""
Path = tuple[str, ...]
"""What a question asks: ("city", "alice"), or ("city", "boss", "alice") for the city of alice's boss."""


@dataclass(frozen=True, slots=True)
class Statement:
    """What a line says of a key.

    `plain`: this is the value. `also`: this one too. `vague`: one of two. `not`: this value no longer. `retract`: nothing is known
    any more.
    """

    kind: str
    relation: str
    person: str
    values: tuple[str, ...] = ()

    @property
    def key(self) -> Key:
        return self.relation, self.person


_PEOPLE = {*TRAIN_NAMES, *NEW_NAMES}
_PROPER = {*_PEOPLE, *VALUES["city"]}

VERBS: dict[str, tuple[tuple[str, str], ...]] = {
    "city": (("live in", "lives in"), ("have a home in", "has a home in")),
    "job": (("work as a", "works as a"), ("earn a living as a", "earns a living as a")),
    "pet": (("keep a", "keeps a"), ("share a home with a", "shares a home with a")),
    "hobby": (("go in for", "goes in for"), ("spend every weekend on", "spends every weekend on")),
    "boss": (("report to", "reports to"), ("work under", "works under")),
    "friend": (("am best friends with", "is best friends with"), ("trust nobody more than", "trusts nobody more than")),
}
"""Of each relation some verbs, in the first and in the third person; the value follows."""
TITLES = {"city": "home town", "job": "job", "pet": "pet", "hobby": "hobby", "boss": "boss", "friend": "best friend"}
OPENINGS = ("", "", "By the way, ", "Guess what: ", "Did I tell you? ", "Just so you know: ", "As you asked, ")
REFINED, REPEATED = "It is settled: ", "As I said, "
ENDINGS = (".", ".", " these days.", ", in case you wonder.", "!")
VAGUE = (
    "As for {whose} {title}, it is either {a} or {b}, not settled yet.",
    "It is going to be {a} or {b} for {whose} {title}, and nobody knows which yet.",
)
RETRACT = (
    "Forget what I said about {whose} {title}, it is no longer true.",
    "What you heard about {whose} {title} is no longer so, and what comes next is open.",
)
ASK: dict[str, tuple[str, ...]] = {
    "city": ("Which city does {who} live in?", "In which city is the home of {who}?"),
    "job": ("What does {who} work as?", "What is the job of {who}?"),
    "pet": ("Which pet does {who} have?", "What pet is at home with {who}?"),
    "hobby": ("What is the hobby of {who}?", "Which hobby does {who} have?"),
    "boss": ("Who is the boss of {who}?", "To whom does {who} report?"),
    "friend": ("Who is the best friend of {who}?", "Whom does {who} trust most?"),
}
THROUGH = {"boss": "the boss of {who}", "friend": "the best friend of {who}"}

CHATTER = (
    "What a day, I hardly sat down since breakfast.",
    "I saw a {pet} in the park this morning, it would not stop following me.",
    "Somebody told me that {who} lives in {city}, but that was a joke.",
    "Maybe {who} should become a {job}, who knows.",
    "Last night I dreamed that {who} had a {pet} with wings.",
    "I read a long article about {hobby} and understood none of it.",
    "If I were {who}, I would move to {city} at once.",
    "The film about the {job} from {city} was rather dull.",
    "{who} asked me what I think of {hobby}, and I had nothing to say.",
    "Would {who} not make a fine boss?",
)
TRIPLE_CHATTER = (
    "joke {who} {pet} .", "saw {who} {job} .", "likes {who} {city} .", "maybe {who} {hobby} .",
    "maybe city {who} {city} .", "joke job {who} {job} .", "maybe pet {who} {pet} .", "joke hobby {who} {hobby} .",
)  # fmt: skip
"""Small talk; the lines in the second row look like facts."""


def shown(word: str, rendering: str) -> str:
    """A name or a value as the rendering writes it."""
    return word.capitalize() if rendering == "prose" and word in _PROPER else word


def answer_text(values: tuple[str, ...], rendering: str) -> str:
    """The answer to a question: the values in the order they were told, or `unknown`."""
    return " and ".join(shown(value, rendering) for value in values) or UNKNOWN


def answer_texts(values: tuple[str, ...], rendering: str) -> list[str]:
    """Every accepted answer: two values in either order, in English also with a comma."""
    orders = [values, values[::-1]] if len(values) > 1 else [values]
    commas = [", ".join(shown(value, rendering) for value in order) for order in orders if rendering == "prose" and len(order) > 1]
    return [answer_text(order, rendering) for order in orders] + commas


def triple(said: Statement) -> str:
    """`city alice paris .`, `pet alice and cat .`, `city alice paris or rome .`, `pet alice not dog .` or `city alice unknown .`"""
    value = " or ".join(said.values) if said.kind == "vague" else " ".join(said.values)
    value = {"also": f"and {value}", "not": f"not {value}", "retract": UNKNOWN}.get(said.kind, value)
    return f"{said.relation} {said.person} {value} ."


def memory_text(said: Statement, rendering: str) -> str:
    """A statement as a memory holds it: the triple, or one plain sentence in the third person."""
    if rendering == "triples":
        return triple(said)
    who = shown(said.person, "prose")
    if said.kind == "vague":
        return _filled(VAGUE[0], said, f"{who}'s")
    also = "also " if said.kind == "also" else ""
    return f"{who} {also}{VERBS[said.relation][0][1]} {shown(said.values[0], 'prose')}."


def line(rng: random.Random, said: Statement, event: str, speaker: str, rendering: str) -> str:
    """A line that tells a statement; `event` (new, repeated, ...) chooses the wording, which need not give it away."""
    if rendering == "triples":
        return triple(said)
    first_person = said.person == speaker
    who = "I" if first_person else shown(said.person, "prose")
    if said.kind in ("vague", "retract"):
        return _filled(rng.choice(VAGUE if said.kind == "vague" else RETRACT), said, "my" if first_person else f"{who}'s")
    verb = rng.choice(VERBS[said.relation])[0 if first_person else 1]
    opening, adverb = rng.choice(OPENINGS), ""
    if said.kind != "plain":
        adverb = "also " if said.kind == "also" else "no longer "
    elif event == "refined":
        opening = REFINED
    elif event == "repeated":
        opening, adverb = (REPEATED, "") if rng.random() < 0.5 else (opening, "still ")
    elif event in ("contradicted", "cascading") and rng.random() < 0.5:
        adverb = "now "
    return f"{opening}{who} {adverb}{verb} {shown(said.values[0], 'prose')}{rng.choice(ENDINGS)}"


def chatter(rng: random.Random, people: list[str], rendering: str) -> str:
    """A line that tells nothing; some sound as if they did."""
    form = rng.choice(TRIPLE_CHATTER if rendering == "triples" else CHATTER)
    slots = {relation: shown(rng.choice(values), rendering) for relation, values in VALUES.items()}
    return form.format(who=shown(rng.choice(people), rendering), **slots)


def question_text(rng: random.Random, path: Path, rendering: str) -> str:
    """The question for a path, of one or two hops."""
    if rendering == "triples":
        return f"{' '.join(path)} ?"
    who = shown(path[-1], "prose")
    for link in path[-2:0:-1]:
        who = THROUGH[link].format(who=who)
    return rng.choice(ASK[path[0]]).format(who=who)


def read_line(text: str, speaker: str = "") -> Statement | None:
    """What a line or a memory says, in either rendering; None for small talk."""
    words = text.split()
    if words and words[0] in RELATIONS and words[-1] == ".":
        return _read_triple(words)
    if match := _SENTENCE.fullmatch(text):
        kind = {"also": "also", "no longer": "not"}.get(match["adverb"] or "", "plain")
        return Statement(kind, _RELATION_OF[match["verb"]], _person(match["who"], speaker), (match["value"].lower(),))
    for kind, patterns in (("vague", _VAGUE), ("retract", _RETRACT)):
        for pattern in patterns:
            if match := pattern.fullmatch(text):
                values = tuple(match[n].removeprefix("a ").lower() for n in "ab") if kind == "vague" else ()
                return Statement(kind, _TITLED[match["title"]], _person(match["whose"].removesuffix("'s"), speaker), values)
    return None


def read_question(text: str) -> Path | None:
    """The path that a question of either rendering asks for; None if it is no question of this world."""
    words = text.split()
    if words[-1:] == ["?"] and words[0] in RELATIONS:
        return tuple(words[:-1])
    for relation, patterns in _ASK.items():
        for pattern in patterns:
            if match := pattern.fullmatch(text):
                links, who = [], match["who"]
                while through := next(((link, m) for link, p in _THROUGH.items() if (m := p.fullmatch(who))), None):
                    links.append(through[0])
                    who = through[1]["who"]
                return (relation, *links, who.lower())
    return None


def _filled(form: str, said: Statement, whose: str) -> str:
    article = "a " if said.relation in ("job", "pet") else ""
    a, b = (article + shown(value, "prose") for value in said.values) if said.values else ("", "")
    return form.format(whose=whose, title=TITLES[said.relation], a=a, b=b)


def _read_triple(words: list[str]) -> Statement:
    relation, person, *rest = words[:-1]
    if rest == [UNKNOWN]:
        return Statement("retract", relation, person)
    if rest[0] in ("and", "not"):
        return Statement("also" if rest[0] == "and" else "not", relation, person, tuple(rest[1:]))
    return Statement("vague" if "or" in rest else "plain", relation, person, tuple(word for word in rest if word != "or"))


def _person(word: str, speaker: str) -> str:
    return (speaker if word in ("I", "my") else word).lower()


def _one_of(texts: tuple[str, ...] | list[str]) -> str:
    return "|".join(re.escape(text) for text in sorted(set(texts), key=len, reverse=True))


def _patterns(forms: tuple[str, ...]) -> list[re.Pattern[str]]:
    return [re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>.+)", re.escape(form))) for form in forms]


_RELATION_OF = {verb: relation for relation, pairs in VERBS.items() for pair in pairs for verb in pair}
_TITLED = {title: relation for relation, title in TITLES.items()}
_SENTENCE = re.compile(
    rf"(?:{_one_of([*OPENINGS, REFINED, REPEATED])})(?P<who>I|[A-Z][a-z]+) (?:(?P<adverb>now|still|also|no longer) )?"
    rf"(?P<verb>{_one_of(list(_RELATION_OF))}) (?P<value>[A-Za-z]+)(?:{_one_of(ENDINGS)})"
)
_VAGUE, _RETRACT = (
    [re.compile(p.pattern.replace("(?P<title>.+)", f"(?P<title>{_one_of(list(_TITLED))})")) for p in _patterns(forms)]
    for forms in (VAGUE, RETRACT)
)
_ASK = {relation: _patterns(forms) for relation, forms in ASK.items()}
_THROUGH = {link: _patterns((form,))[0] for link, form in THROUGH.items() if link in PERSON_RELATIONS}
