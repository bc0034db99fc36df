"""A page for a sample: what was told, the memory after each event with what changed, what was asked, given, answered, and its cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from memfactory.common.parsing import final_answer
from memfactory.evaluation.html.diffs import Part
from memfactory.evaluation.html.markup import Html, cut, html, tag
from memfactory.evaluation.html.table import Page, count, facts, figure, model_name

SIZE = 2_800_000
"""Bytes that the texts of all sample pages may have together; the markup around them comes to half as much again."""
_TEXT = 4000
"""Most characters of one text."""
_ITEMS = 30
"""Most unchanged items of a bank after an event."""
_LEAST, _MOST = 1500, 16_000
"""Bytes of an event with its memory, and of a question with its answer: what each should have, and what each can have."""
_OPEN = 6
"""Questions that are open to be read at once; the others are a click away, so that the memory is near."""
_CONTEXT = 90
"""Characters that are kept of an unchanged stretch before and behind a change."""


class Purse:
    """The bytes that a part of a page may still have."""

    def __init__(self, left: int) -> None:
        self.left = left

    def cut(self, text: str, most: int = _TEXT) -> Html:
        """A text as far as there is room for it, and how many characters more it has."""
        start = text[:200]
        width = max(1.0, len(html(start).encode()) / max(len(start), 1))
        piece = cut(text, min(most, max(40, int(self.left / width))))
        self.left -= len(piece.encode())
        return piece


@dataclass(frozen=True, slots=True)
class Room:
    """How much of a sample is shown: its events and its questions have half of it each."""

    parts: int
    """Most events, and most questions."""
    half: int
    """Bytes."""

    @classmethod
    def of(cls, samples: int) -> Room:
        """The same for each of so many."""
        half = SIZE // (2 * max(samples, 1))
        return cls(min(60, max(3, half // _LEAST)), half)

    def purse(self, parts: int) -> Purse:
        """What one of so many events or questions may have."""
        return Purse(min(_MOST, self.half // max(1, min(parts, self.parts))))


def sample_page(page: Page, sample: Mapping[str, Any], room: Room) -> Html:
    """One sample as a section that its address opens."""
    parts = (_head(page, sample), _facts(sample), _asked(sample["questions"], room), _written(sample, room))
    return tag("section", {"id": sample["anchor"], "class": "sample"}, parts)


def _asked(asked: Sequence[Mapping[str, Any]], room: Room) -> Html:
    shown = [_question(question, room.purse(len(asked))) for question in asked[: room.parts]]
    hidden = len(asked) - len(shown)
    if len(shown) > _OPEN + 1:
        shown = [*shown[:_OPEN], tag("details", {"class": "rest"}, tag("summary", f"{len(shown) - _OPEN} more questions"), shown[_OPEN:])]
    more = tag("p", {"class": "more"}, f"… {hidden} more questions, kept in attempts.jsonl")
    return html([tag("h3", f"Questions ({len(asked)})"), shown, hidden > 0 and more])


def _written(sample: Mapping[str, Any], room: Room) -> Html:
    """The events with the memory after each; the memory alone where there were none."""
    steps = sample["steps"]
    if not steps:
        kept = tag("pre", {"dir": "auto"}, room.purse(1).cut(sample["memory"]))
        return html([tag("h3", "Memory"), kept]) if sample["memory"] else Html()
    wrote = [_step(number, steps[number - 1], room.purse(len(steps))) for number in _chosen(len(steps), room.parts)]
    if hidden := len(steps) - len(wrote):
        wrote.insert(-(-room.parts * 2 // 3), tag("p", {"class": "more"}, f"… {hidden} more events, kept in attempts.jsonl"))
    return html([tag("h3", f"How the memory was written ({count(len(steps), 'event')})"), wrote])


def _head(page: Page, sample: Mapping[str, Any]) -> Html:
    """The way back and on, the sample's name, and the same sample with the other models."""
    mates = [other for other in page["samples"] if (other["dataset"], other["model"]) == (sample["dataset"], sample["model"])]
    at = next(place for place, other in enumerate(mates) if other is sample)
    on = [_link(word, mates[to] if 0 <= to < len(mates) else None) for word, to in (("‹ previous", at - 1), ("next ›", at + 1))]
    tabs = [
        _link([model_name(page, other["model"]), f" {_score(other['score'])}"], other, here=other is sample)
        for other in page["samples"]
        if (other["dataset"], other["example"]) == (sample["dataset"], sample["example"])
    ]
    return html([
        tag("nav", {"class": "way"}, tag("a", {"href": "#samples"}, "‹ back to the report"), tag("span", on)),
        tag("h2", tag("span", {"class": "kicker"}, sample["dataset"]), sample["example"]),
        tag("nav", {"class": "tabs", "aria-label": "models"}, tabs),
    ])  # fmt: skip


def _link(words: Any, to: Mapping[str, Any] | None, here: bool = False) -> Html:
    """A link to a sample's page; where there is none its words alone."""
    if to is None:
        return tag("span", {"class": "off"}, words)
    return tag("a", {"href": f"#{to['anchor']}", "aria-current": "page" if here else None}, words)


def _facts(sample: Mapping[str, Any]) -> Html:
    sampled = ", ".join(_score(score) for score in sample["sampled"])
    report = ", ".join(f"{name.replace('_', ' ')} {number}" for name, number in sorted(sample["report"].items()) if number)
    return facts([
        ("greedy score", tag("b", _score(sample["score"]))), ("sampled scores", sampled),
        ("status", sample["status"] if sample["status"] != "ok" else ""), ("lost because", sample["error"]), *_costs(sample),
        ("counts", report),
    ])  # fmt: skip


def _costs(sample: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the greedy attempt cost, writing and answering apart where the ledger tells."""
    if not sample["cost"]:
        calls, prompt, completion = sample["tokens"]
        return [("cost", _told([calls, prompt, completion]))]
    return [(part, _told([sum(values) for values in zip(*stages.values(), strict=True)])) for part, stages in sample["cost"].items()]


def _told(measures: Sequence[float]) -> str:
    calls, prompt, completion, *seconds = measures
    time = f", {seconds[0]:.2f} s" if seconds else ""
    return f"{calls:,.0f} call{'' if calls == 1 else 's'}, {prompt:,.0f} prompt and {completion:,.0f} completion tokens{time}"


def _question(question: Mapping[str, Any], purse: Purse) -> Html:
    score, whole = question["score"], question["answer"]
    kind = "lost" if score is None else "right" if score >= 1 else "wrong" if score <= 0 else "partly"
    sign = tag("span", {"class": f"sign {kind}", "aria-label": kind}, {"lost": "?", "right": "✓", "wrong": "✗", "partly": "◐"}[kind])
    others = ", ".join(_score(value) for value in question["sampled"])
    scored = tag("span", {"class": "scored"}, f"score {_score(score)}{', sampled ' if others else ''}{others}")
    kinds = (question.get("type"), "to abstain on" if question.get("abstain") else None, question.get("label_error"))
    marked = [tag("span", {"class": "kind"}, word) for word in kinds if word]
    asked = tag("h4", {"dir": "auto"}, sign, purse.cut(question["question"] or "(question not kept)"), marked, scored)
    golds = [[at > 0 and tag("span", {"class": "quiet"}, " or "), purse.cut(str(gold))] for at, gold in enumerate(question["answers"])]
    short = final_answer(whole) or ""
    answer = tag("b", {"class": kind}, purse.cut(short)) if short else tag("i", "no answer could be read")
    told = facts([
        ("gold", html(golds)), ("answer", answer),
        ("all marks", ", ".join(f"{name} {_score(value)}" for name, value in question["marks"].items())),
        ("whole reply", tag("span", {"class": "reply"}, purse.cut(whole)) if whole.strip() != short else None),
    ])  # fmt: skip
    return tag("article", {"class": "question"}, asked, told, _given(question["given"], purse))


def _given(items: Sequence[Mapping[str, Any]], purse: Purse) -> Html:
    """What an answer was made from; where there is no room for all, those with the gold answer's words first."""
    if not items:
        return Html()
    lines: dict[int, Html] = {}
    holds = tag("span", {"class": "kind gold"}, "holds the gold answer")
    for at, item in sorted(enumerate(items), key=lambda pair: (not pair[1]["gold"], pair[0])):
        if purse.left > 0:
            lines[at] = tag("li", {"dir": "auto"}, purse.cut(item["text"]), item["gold"] and holds)
    hits = sum(bool(item["gold"]) for item in items)
    told = f"answered from {len(items)} memor{'y' if len(items) == 1 else 'ies'}, {hits or 'none'} of them with the gold answer's words"
    left = len(items) - len(lines)
    shown = [*(lines[at] for at in sorted(lines)), left > 0 and tag("li", {"class": "more"}, f"… {left} more")]
    return tag("details", {"class": "given"}, tag("summary", told), tag("ul", shown))


def _chosen(number: int, most: int) -> list[int]:
    """The numbers of the steps that are shown: all, or the first two thirds of what there is room for and the last third."""
    if number <= most:
        return list(range(1, number + 1))
    first = -(-most * 2 // 3)
    return [*range(1, first + 1), *range(number - (most - first) + 1, number + 1)]


def _step(number: int, step: Mapping[str, Any], purse: Purse) -> Html:
    told = tag("pre", {"dir": "auto"}, purse.cut(step["event"], max(400, purse.left // 2)))
    memory = _bank(step["items"], purse) if step["bank"] else _text(step["parts"], purse)
    event = tag("div", {"class": "event"}, tag("h5", f"event {number}"), told)
    return tag("div", {"class": "step"}, event, tag("div", {"class": "memory"}, tag("h5", "memory after it"), memory))


def _bank(items: Sequence[tuple[str, str, Sequence[Part]]], purse: Purse) -> Html:
    """Items that changed as far as there is room, then of the others the first; all in the bank's order."""
    lines: dict[int, Html] = {}
    same = [at for at, (kind, _, _) in enumerate(items) if kind == "same"]
    changed = [at for at, (kind, _, _) in enumerate(items) if kind != "same"]
    for at in (*changed, *same[:_ITEMS]):
        kind, id, parts = items[at]
        if purse.left > 0:
            lines[at] = tag("li", {"class": kind, "dir": "auto"}, tag("span", {"class": "id"}, id), _parts(parts, purse))
    hidden, left = sum(at not in lines for at in changed), sum(at not in lines for at in same)
    kinds = [kind for kind, _, _ in items]
    told = ", ".join(f"{kinds.count(kind)} {kind}" for kind in ("added", "changed", "removed") if kind in kinds) or "nothing changed"
    more = [f"… {hidden} of them not shown" if hidden else "", f"… {left} more unchanged" if left else ""]
    return html([
        tag("ul", {"class": "bank"}, [lines[at] for at in sorted(lines)]) if items else tag("p", {"class": "quiet"}, "empty"),
        tag("p", {"class": "quiet"}, "; ".join(text for text in (told, *more) if text)),
    ])  # fmt: skip


def _text(parts: Sequence[Part], purse: Purse) -> Html:
    changed = any(kind != "same" for kind, _ in parts)
    return html([
        tag("pre", {"dir": "auto"}, _parts(parts, purse)) if parts else tag("p", {"class": "quiet"}, "empty"),
        not changed and bool(parts) and tag("p", {"class": "quiet"}, "nothing changed"),
    ])  # fmt: skip


def _parts(parts: Sequence[Part], purse: Purse) -> Html:
    """Pieces of a text, marked; long ones that did not change keep their ends, and what is past the room is counted."""
    length = sum(len(text) for _, text in parts)
    shown: list[Html] = []
    room = min(_TEXT, purse.left)
    for at, (kind, text) in enumerate(parts):
        if purse.left <= 0:
            shown.append(tag("span", {"class": "more"}, f" … {sum(len(rest) for _, rest in parts[at:]):,} characters more"))
            break
        if kind == "same" and len(text) > 3 * _CONTEXT and length > room and len(parts) > 1:
            ends = (text[:_CONTEXT] if at else "", text[-_CONTEXT:] if at + 1 < len(parts) else "")
            skipped = tag("span", {"class": "more"}, f" … {len(text) - len(ends[0]) - len(ends[1]):,} characters unchanged … ")
            shown.append(html([purse.cut(ends[0]), skipped, purse.cut(ends[1])]))
        else:
            piece = purse.cut(text)
            shown.append(piece if kind == "same" else tag("ins" if kind == "added" else "del", piece))
    return html(shown)


def _score(value: float | None) -> str:
    return "lost" if value is None else figure(value, "g") if value in (0, 1) else figure(value, ".2f")
