"""`synth_dialog`: two people talk over some days about themselves and others; what is true changes, and questions are asked at the end.

For agents that keep a memory bank. Facts are new, refined, contradicted, repeated, retracted, additive (both stay true) or
cascading (a fact about another person changes what a two-hop question answers), among small talk. Knows no agent.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import product
from typing import Any

from memfactory.common.errors import ConfigError
from memfactory.common.registry import GENERATOR_REGISTRY
from memfactory.data.generators.dialog_bank import Bank, Edit, apply, oracle, read
from memfactory.data.generators.dialog_world import (
    RENDERINGS,
    SEVERAL,
    Key,
    Path,
    Statement,
    answer_texts,
    chatter,
    line,
    memory_text,
    question_text,
    shown,
)
from memfactory.data.generators.synth_facts import NAMES
from memfactory.data.generators.world import PERSON_RELATIONS, RELATIONS, VALUES

Dialogue = dict[str, Any]

NEVER_TOLD = 2
"""Keys that nobody speaks of however long the dialogue is, so that there is something to abstain from."""
UNANSWERED = 0.2
"""At most this share of the questions has the answer `unknown`, on average over dialogues."""
_CHANGES = ("contradicted", "cascading")
_WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


@GENERATOR_REGISTRY.register("synth_dialog")
def synth_dialog(
    num_examples: int,
    *,
    seed: int = 0,
    sessions: Sequence[int] = (2, 3, 4),
    turns_per_session: int = 4,
    questions: int = 4,
    rendering: str = "prose",
    people: int = 4,
    names: str = "train",
    new: float = 0.22,
    contradicted: float = 0.26,
    refined: float = 0.1,
    repeated: float = 0.08,
    retracted: float = 0.12,
    additive: float = 0.12,
    cascading: float = 0.14,
    chatter: float = 0.15,
) -> Iterator[Dialogue]:
    """Dialogues of two speakers over dated sessions, with questions about what is true at the end.

    Each has a number of sessions drawn from `sessions`. `rendering` is prose or triples, `names` train, new or all. `chatter`
    is the share of lines that tell nothing; the seven options before it weigh what the others tell, each while there is
    something it can be told of. Dialogue i depends on (seed, i) and not on how many there are. Under `gold`, for diagnosis
    only: what each line was, the right operations and the right bank after it.
    """
    weights = {"new": new, "contradicted": contradicted, "refined": refined, "repeated": repeated, "retracted": retracted,
               "additive": additive, "cascading": cascading}  # fmt: skip
    _check(sessions, turns_per_session, questions, rendering, people, names, weights, chatter)
    for index in range(num_examples):
        rng = random.Random(f"synth_dialog/{seed}/{index}")
        count = rng.choice(list(sessions))
        draft = Draft(rng, rng.sample(NAMES[names], people), weights, chatter, rendering)
        for number in range(1, count + 1):
            draft.session(number, turns_per_session)
        yield draft.dialogue(f"synth_dialog/{seed}/{index}", questions)


def _check(
    sessions: Sequence[int], turns: int, questions: int, rendering: str, people: int, names: str,
    weights: Mapping[str, float], chatter: float,
) -> None:  # fmt: skip
    if rendering not in RENDERINGS:
        raise ConfigError(f"rendering={rendering!r} is unknown. Known: {', '.join(RENDERINGS)}.")
    if names not in NAMES:
        raise ConfigError(f"names={names!r} is unknown. Known: {', '.join(NAMES)}.")
    if not 2 <= people <= len(NAMES[names]):
        raise ConfigError(f"people={people}: two speak, and names={names!r} has {len(NAMES[names])}.")
    if not sessions or not all(isinstance(number, int) and number >= 1 for number in sessions):
        raise ConfigError(f"sessions={sessions!r}: give whole numbers from 1 to draw from, such as [2, 3, 4].")
    if turns < 1 or questions < 1:
        raise ConfigError(f"turns_per_session={turns}, questions={questions}: each must be at least 1.")
    if min(weights.values()) < 0 or weights["new"] == 0:
        raise ConfigError(f"The weights of what is told must not be negative, and new must be above 0; got {dict(weights)}.")
    if not 0 <= chatter <= 0.9:
        raise ConfigError(f"chatter={chatter}: a share of all lines, from 0 to 0.9.")


class Draft:
    """A dialogue in the making: what has been said, what is true after it, and what can be asked."""

    def __init__(self, rng: random.Random, people: list[str], weights: Mapping[str, float], chatter: float, rendering: str) -> None:
        self.rng, self.people, self.weights, self.chatter, self.rendering = rng, people, weights, chatter, rendering
        self.speakers = people[:2]
        keys = [(relation, person) for relation in RELATIONS for person in people]
        self.never_told = rng.sample(keys, NEVER_TOLD)
        self.keys = [key for key in keys if key not in self.never_told]
        self.bank: Bank = {}
        self.free = 0
        self.events: dict[Key, list[str]] = {}
        """What happened to a key since it was last told anew, or up to its retraction."""
        self.evidence: dict[Key, list[str]] = {}
        """The turns that what is true of a key follows from."""
        self.changed: dict[Key, tuple[int, str]] = {}
        """The number of the line that gave a key its value, and its event."""
        self.sessions: list[dict[str, Any]] = []
        self.gold: list[dict[str, Any]] = []
        self.day = datetime(2023, 1, 2, 9) + timedelta(days=rng.randrange(300), minutes=rng.randrange(600))

    def session(self, number: int, lines: int) -> None:
        """One session; a key is spoken of at most once in it."""
        open_keys, turns = set(self.keys), []
        for position in range(1, lines + 1):
            turn = f"D{number}:{position}"
            event, said = self._draw(open_keys)
            edits: list[Edit] = []
            if said is None:
                speaker, text = self.rng.choice(self.speakers), chatter(self.rng, self.people, self.rendering)
            else:
                # One speaks of oneself; of others, either does.
                speaker = said.person if said.person in self.speakers else self.rng.choice(self.speakers)
                text = line(self.rng, said, event, speaker, self.rendering)
                open_keys.discard(said.key)
                edits = oracle(self.bank, said, self.free)
                self._note(event, said, turn)
                self.bank = apply(self.bank, edits)
                self.free += any(edit.op == "ADD" for edit in edits)
            turns.append({"id": turn, "speaker": shown(speaker, self.rendering), "text": text})
            self.gold.append({"id": turn, "event": event, "ops": [self._edit(e) for e in edits], "bank": self._bank()})
        self.sessions.append({"date": self._date(number), "turns": turns})
        self.day += timedelta(days=self.rng.randint(1, 12), minutes=self.rng.randint(-300, 300))

    def _draw(self, open_keys: set[Key]) -> tuple[str, Statement | None]:
        """What the next line tells: an event of those that are possible now, and a statement for it."""
        targets = self._targets([key for key in self.keys if key in open_keys])
        possible = [event for event, keys in targets.items() if keys and self.weights[event] > 0]
        if self.rng.random() < self.chatter or not possible:
            return "chatter", None
        event = self.rng.choices(possible, [self.weights[event] for event in possible])[0]
        relation, person = key = self.rng.choice(targets[event])
        items = [item for item in self.bank.values() if item.key == key]
        held = [value for item in items for value in item.values]
        if event == "repeated":
            item = self.rng.choice(items)
            return event, Statement("plain" if item.kind == "also" else item.kind, relation, person, item.values)
        if event == "retracted":
            whole = len(items) == 1 and (self.rendering == "triples" or items[0].kind == "vague" or self.rng.random() < 0.5)
            return event, Statement("retract" if whole else "not", relation, person, () if whole else (self.rng.choice(held),))
        if event == "refined" and items:
            return event, Statement("plain", relation, person, (self.rng.choice(held),))
        choices = [value for value in VALUES.get(relation) or self.people if value not in (*held, person)]
        if event == "refined":
            return "new", Statement("vague", relation, person, tuple(self.rng.sample(choices, 2)))
        return event, Statement("also" if event == "additive" else "plain", relation, person, (self.rng.choice(choices),))

    def _targets(self, keys: list[Key]) -> dict[str, list[Key]]:
        """The keys that each event can be about."""
        held: dict[Key, list[Statement]] = {key: [] for key in self.keys}
        for item in self.bank.values():
            held[item.key].append(item)
        free = [key for key in keys if not held[key]]
        vague = [key for key in keys if any(item.kind == "vague" for item in held[key])]
        one = [key for key in keys if len(held[key]) == 1 and key not in vague]
        bridges = {item.values[0] for item in self.bank.values() if item.relation in PERSON_RELATIONS}
        of_bridges = [key for key in free if key[0] in VALUES and key[1] in bridges]
        # A refinement needs a vague statement before it: without one, that statement is made.
        return {
            # Half of what is new is about somebody's boss or friend, if it can be: two-hop questions need such facts.
            "new": of_bridges if of_bridges and self.rng.random() < 0.5 else free,
            # With two people boss and friend have one possible value each and cannot change.
            "contradicted": [key for key in one if key[0] in VALUES or len(self.people) > 2],
            "refined": vague or [key for key in free if key[0] in VALUES],
            "repeated": [key for key in keys if held[key]],
            "retracted": [key for key in keys if held[key]],
            "additive": [key for key in one if key[0] in SEVERAL],
            "cascading": [key for key in one if key[0] in VALUES and key[1] in bridges],
        }

    def _note(self, event: str, said: Statement, turn: str) -> None:
        """Keep what questions need: the events of the key, the turns its value follows from, and when it got this value."""
        key = said.key
        if event == "new":
            self.events[key] = ["retracted"] * ("retracted" in self.events.get(key, []))
        if event in ("new", "retracted", *_CHANGES) and said.kind != "not":
            self.evidence[key] = []
        self.events[key].append(event)
        self.evidence[key].append(turn)
        if event != "repeated":
            self.changed[key] = (len(self.gold), event)

    def dialogue(self, name: str, questions: int) -> Dialogue:
        """The record: sessions, questions and gold."""
        chosen = self._choose(questions)
        asked = []
        for kind, path in chosen:
            values = read(self.bank, path)
            asked.append({
                "question": question_text(self.rng, path, self.rendering),
                "answers": answer_texts(values, self.rendering),
                "type": kind,
                "evidence": self._evidence(path),
                "abstain": not values,
            })  # fmt: skip
        return {
            "dialog_id": name,
            "speakers": [shown(speaker, self.rendering) for speaker in self.speakers],
            "sessions": self.sessions,
            "questions": asked,
            "gold": {"rendering": self.rendering, "turns": self.gold},
        }

    def _choose(self, questions: int) -> list[tuple[str, Path]]:
        """Questions of as many types as there are: by turns one of each type, in random orders."""
        candidates = self._candidates()
        for paths in candidates.values():
            self.rng.shuffle(paths)
        ordered: list[tuple[str, Path]] = []
        while kinds := [kind for kind, paths in candidates.items() if paths]:
            ordered += [(kind, candidates[kind].pop()) for kind in self.rng.sample(kinds, len(kinds))]
        known = [read(self.bank, path) != () for _, path in ordered]
        most = math.floor(questions * UNANSWERED + self.rng.random())
        # What was taken back is the harder case, and rarer: it goes first twice in three times.
        first = self.rng.choice(["retracted", "retracted", "abstain"])
        unknown = sorted((pair for pair, answer in zip(ordered, known, strict=True) if not answer), key=lambda pair: pair[0] != first)
        # More than `most` have the answer `unknown` only if nothing else is left to ask.
        late = set(unknown[most:])
        chosen = sorted(ordered, key=lambda pair: pair in late)[:questions]
        if len(chosen) < questions:
            raise ConfigError(
                f"questions={questions}: a dialogue of {len(self.sessions)} sessions and {len(self.people)} people has "
                f"{len(chosen)} to ask. Ask for fewer, or give it more sessions or people."
            )
        return chosen

    def _candidates(self) -> dict[str, list[Path]]:
        """Every path that can be asked, by type; what is only vaguely known cannot."""
        found: dict[str, list[Path]] = {}
        untold = [key for key in [*self.never_told, *self.keys] if key not in self.events]
        for key in self.events:
            if not self._vague(key):
                found.setdefault(self._kind(key), []).append(key)
        for relation, link, person in product(VALUES, PERSON_RELATIONS, self.people):
            path = (relation, link, person)
            first, values = read(self.bank, path[1:]), read(self.bank, path)
            bridge = (relation, first[0]) if first else None
            if bridge in untold:
                found.setdefault("abstain", []).append(path)
            elif bridge in self.events and not values and not self._vague(bridge):
                found.setdefault("retracted", []).append(path)
            elif bridge and len(values) == 1 and bridge[1] != person:
                found.setdefault(self._two_hop_kind((link, person), bridge), []).append(path)
        found.setdefault("abstain", []).extend(untold)
        return found

    def _vague(self, key: Key | None) -> bool:
        return any(item.kind == "vague" for item in self.bank.values() if item.key == key)

    def _kind(self, key: Key) -> str:
        events = self.events[key]
        if events[-1] == "retracted" or len(read(self.bank, key)) > 1:
            return "retracted" if events[-1] == "retracted" else "additive"
        if any(event in ("retracted", *_CHANGES) for event in events):
            return "updated"
        return next((kind for kind in ("refined", "repeated") if kind in events), "plain")

    def _two_hop_kind(self, link: Key, end: Key) -> str:
        """`cascading` if the later of the two facts replaced an older one when the other was known."""
        _, event = max(self.changed[link], self.changed[end])
        return "cascading" if event in ("retracted", *_CHANGES) else "multi_hop"

    def _evidence(self, path: Path) -> list[str]:
        """The turns that the answer follows from, in their order."""
        *relations, person = path
        turns: set[str] = set()
        for relation in reversed(relations):
            turns |= set(self.evidence.get((relation, person), []))
            person = (read(self.bank, (relation, person)) or ("",))[0]
        return sorted(turns, key=lambda turn: tuple(map(int, turn[1:].split(":"))))

    def _edit(self, edit: Edit) -> dict[str, Any]:
        shape: dict[str, Any] = {"op": edit.op, "id": edit.id}
        return shape | ({"text": memory_text(edit.fact, self.rendering)} if edit.fact else {})

    def _bank(self) -> list[list[Any]]:
        return [[number, memory_text(item, self.rendering)] for number, item in self.bank.items()]

    def _date(self, number: int) -> str:
        """`2023/05/30 (Tue) 23:40`, or `day 3` in the tiny world, whose numbers go to 31: `day 1 0` is the 32nd."""
        if self.rendering == "triples":
            return f"day {number}" if number < 32 else f"day {number // 32} {number % 32}"
        return f"{self.day:%Y/%m/%d} ({_WEEKDAYS[self.day.weekday()]}) {self.day:%H:%M}"
