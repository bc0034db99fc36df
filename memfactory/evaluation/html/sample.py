"""A page for a sample: what was told, the memory after each event with what changed, what was asked, given, answered, and its cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from memfactory.common.parsing import final_answer
from memfactory.evaluation.html.diffs import Part
from memfactory.evaluation.html.markup import Html, cut, html, tag
from memfactory.evaluation.html.table import Page, facts, figure, model_name

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
    asked, steps = sample["questions"], sample["steps"]
    shown = [_question(question, room.purse(len(asked))) for question in asked[: room.parts]]
    hidden = len(asked) - len(shown)
    if len(shown) > _OPEN + 1:
        shown = [*shown[:_OPEN], tag("details", tag("summary", f"{len(shown) - _OPEN} more questions"), shown[_OPEN:], class_="rest")]
    wrote = [_step(number, steps[number - 1], room.purse(len(steps))) for number in _chosen(len(steps), room.parts)]
    if len(wrote) < len(steps):
        wrote.insert(-(-room.parts * 2 // 3), tag("p", f"… {len(steps) - len(wrote)} more events, kept in attempts.jsonl", class_="more"))
    final = [] if steps else [tag("h3", "Memory"), tag("pre", room.purse(1).cut(sample["memory"]), dir="auto")] if sample["memory"] else []
    return tag(
        "section", _head(page, sample), tag("h3", f"Questions ({len(asked)})"), shown,
        hidden > 0 and tag("p", f"… {hidden} more questions, kept in attempts.jsonl", class_="more"),
        bool(steps) and tag("h3", f"How the memory was written ({len(steps)} {'events' if len(steps) > 1 else 'event'})"), wrote, final,
        id=sample["anchor"], class_="sample",
    )  # fmt: skip


def _head(page: Page, sample: Mapping[str, Any]) -> Html:
    everyone = [other for other in page["samples"] if (other["dataset"], other["example"]) == (sample["dataset"], sample["example"])]
    mates = [other for other in page["samples"] if (other["dataset"], other["model"]) == (sample["dataset"], sample["model"])]
    at = mates.index(sample)
    tabs = [
        tag("a", model_name(page, other["model"]), f" {_score(other['score'])}", href=f"#{other['anchor']}",
            aria_current="page" if other is sample else None)
        for other in everyone
    ]  # fmt: skip
    way = [
        tag("a", "‹ back to the report", href="#samples"),
        tag("span", [tag("a", word, href=f"#{mates[to]['anchor']}") if 0 <= to < len(mates) else tag("span", word, class_="off")
                     for word, to in (("‹ previous", at - 1), ("next ›", at + 1))]),
    ]  # fmt: skip
    return html([
        tag("nav", way, class_="way"), tag("h2", tag("span", sample["dataset"], class_="kicker"), sample["example"]),
        tag("nav", tabs, class_="tabs", aria_label="models"), _facts(sample),
    ])  # fmt: skip


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
    score = question["score"]
    kind = "lost" if score is None else "right" if score >= 1 else "wrong" if score <= 0 else "partly"
    sign = {"lost": "?", "right": "✓", "wrong": "✗", "partly": "◐"}[kind]
    whole = question["answer"]
    short = final_answer(whole) or ""
    others = [_score(value) for value in question["sampled"]]
    scored = f"score {_score(score)}{', sampled ' + ', '.join(others) if others else ''}"
    marks = ", ".join(f"{name} {_score(value)}" for name, value in question["marks"].items())
    gold = html([[at > 0 and tag("span", " or ", class_="quiet"), purse.cut(str(answer))] for at, answer in enumerate(question["answers"])])
    kinds = [question.get("type"), "to abstain on" if question.get("abstain") else None, question.get("label_error")]
    return tag(
        "article",
        tag("h4", tag("span", sign, class_=f"sign {kind}", aria_label=kind), purse.cut(question["question"] or "(question not kept)"),
            [tag("span", word, class_="kind") for word in kinds if word], tag("span", scored, class_="scored"), dir="auto"),
        facts([
            ("gold", gold), ("answer", tag("b", purse.cut(short), class_=kind) if short else tag("i", "no answer could be read")),
            ("all marks", marks),
            ("whole reply", tag("span", purse.cut(whole), class_="reply") if whole.strip() != short else None),
        ]),
        _given(question["given"], purse), class_="question",
    )  # fmt: skip


def _given(items: Sequence[Mapping[str, Any]], purse: Purse) -> Html:
    """What an answer was made from; where there is no room for all, those with the gold answer's words first."""
    if not items:
        return Html()
    lines: dict[int, Html] = {}
    holds = tag("span", "holds the gold answer", class_="kind gold")
    for at, item in sorted(enumerate(items), key=lambda pair: (not pair[1]["gold"], pair[0])):
        if purse.left > 0:
            lines[at] = tag("li", purse.cut(item["text"]), item["gold"] and holds, dir="auto")
    hits = sum(bool(item["gold"]) for item in items)
    told = f"answered from {len(items)} memor{'y' if len(items) == 1 else 'ies'}, {hits or 'none'} of them with the gold answer's words"
    left = len(items) - len(lines)
    shown = [*(lines[at] for at in sorted(lines)), left > 0 and tag("li", f"… {left} more", class_="more")]
    return tag("details", tag("summary", told), tag("ul", shown), class_="given")


def _chosen(number: int, most: int) -> list[int]:
    """The numbers of the steps that are shown: all, or the first two thirds of what there is room for and the last third."""
    if number <= most:
        return list(range(1, number + 1))
    first = -(-most * 2 // 3)
    return [*range(1, first + 1), *range(number - (most - first) + 1, number + 1)]


def _step(number: int, step: Mapping[str, Any], purse: Purse) -> Html:
    told = tag("pre", purse.cut(step["event"], max(400, purse.left // 2)), dir="auto")
    memory = _bank(step["items"], purse) if step["bank"] else _text(step["parts"], purse)
    event = tag("div", tag("h5", f"event {number}"), told, class_="event")
    return tag("div", event, tag("div", tag("h5", "memory after it"), memory, class_="memory"), class_="step")


def _bank(items: Sequence[tuple[str, str, Sequence[Part]]], purse: Purse) -> Html:
    """Items that changed as far as there is room, then of the others the first; all in the bank's order."""
    lines: dict[int, Html] = {}
    same = [at for at, (kind, _, _) in enumerate(items) if kind == "same"]
    changed = [at for at, (kind, _, _) in enumerate(items) if kind != "same"]
    for at in (*changed, *same[:_ITEMS]):
        kind, id, parts = items[at]
        if purse.left > 0:
            lines[at] = tag("li", tag("span", id, class_="id"), _parts(parts, purse), class_=kind, dir="auto")
    hidden, left = sum(at not in lines for at in changed), sum(at not in lines for at in same)
    kinds = [kind for kind, _, _ in items]
    told = ", ".join(f"{kinds.count(kind)} {kind}" for kind in ("added", "changed", "removed") if kind in kinds) or "nothing changed"
    more = [f"… {hidden} of them not shown" if hidden else "", f"… {left} more unchanged" if left else ""]
    return html([
        tag("ul", [lines[at] for at in sorted(lines)], class_="bank") if items else tag("p", "empty", class_="quiet"),
        tag("p", "; ".join(text for text in (told, *more) if text), class_="quiet"),
    ])  # fmt: skip


def _text(parts: Sequence[Part], purse: Purse) -> Html:
    changed = any(kind != "same" for kind, _ in parts)
    return html([
        tag("pre", _parts(parts, purse), dir="auto") if parts else tag("p", "empty", class_="quiet"),
        not changed and bool(parts) and tag("p", "nothing changed", class_="quiet"),
    ])  # fmt: skip


def _parts(parts: Sequence[Part], purse: Purse) -> Html:
    """Pieces of a text, marked; long ones that did not change keep their ends, and what is past the room is counted."""
    length = sum(len(text) for _, text in parts)
    shown: list[Html] = []
    room = min(_TEXT, purse.left)
    for at, (kind, text) in enumerate(parts):
        if purse.left <= 0:
            shown.append(tag("span", f" … {sum(len(rest) for _, rest in parts[at:]):,} characters more", class_="more"))
            break
        if kind == "same" and len(text) > 3 * _CONTEXT and length > room and len(parts) > 1:
            ends = (text[:_CONTEXT] if at else "", text[-_CONTEXT:] if at + 1 < len(parts) else "")
            skipped = tag("span", f" … {len(text) - len(ends[0]) - len(ends[1]):,} characters unchanged … ", class_="more")
            shown.append(html([purse.cut(ends[0]), skipped, purse.cut(ends[1])]))
        else:
            piece = purse.cut(text)
            shown.append(piece if kind == "same" else tag("ins" if kind == "added" else "del", piece))
    return html(shown)


def _score(value: float | None) -> str:
    return "lost" if value is None else figure(value, "g") if value in (0, 1) else figure(value, ".2f")
