"""The memory bank: stored facts as an immutable value, and the one place that executes operations on it.

An edit returns a new bank that shares every untouched item, so a fork costs nothing and no rollout can touch another's
memory. Whatever a policy asks for has an outcome and never raises: an operation is applied or it is rejected with a reason
(Memory-R1, arXiv 2508.19828, made total and deterministic). Knows no text format of operations, no embedding, no reward.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, get_args

from memfactory.common.errors import ConfigError, DataError
from memfactory.memory.dates import earlier
from memfactory.memory.items import (
    DUPLICATE_ID,
    DUPLICATE_TEXT,
    FULL,
    ID_IN_USE,
    NO_TEXT,
    OLD_NEWS,
    OTHER_OWNER,
    UNKNOWN_ID,
    MemoryItem,
    MemoryOp,
    Rejection,
    as_date,
    as_name,
)

WritePolicy = Literal["crud", "add_only", "temporal"]
WRITE_POLICIES: tuple[str, ...] = get_args(WritePolicy)
WHEN_FULL = ("refuse", "oldest")
"""What a full bank does with an ADD: refuse it, or forget the item that was added longest ago (`make_room`)."""

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Applied:
    """What came of a list of operations: each of them is in `applied` or in `rejected`, in the order they were asked."""

    bank: MemoryBank
    applied: tuple[MemoryOp, ...]
    """As executed: an ADD carries the id it was given (none if it said what an item says already), so that asking for these
    again, likewise, gives the same bank."""
    rejected: tuple[Rejection, ...]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class MemoryBank:
    """All facts of one memory. `MemoryBank()` is empty; `MemoryBank.of(["Alice lives in Paris"])` holds one with id "0".

    Equal banks hold the same items (tombstones and closed ones too) in the same order. Iteration and `len` are over live items.
    """

    _items: Mapping[str, MemoryItem] = field(default_factory=dict)
    """Every item there ever was, in the order of insertion; never changed in place."""
    _deleted: frozenset[str] = frozenset()
    _counts: ClassVar[bool] = False
    """Whether a fact that is told again in the same words is counted (`told`) under each policy, not only under `temporal`."""

    @classmethod
    def of(cls, entries: Iterable[str | MemoryItem]) -> MemoryBank:
        """A bank of texts (named "0", "1", ...) or items (with their own ids). Blank texts and equal ids raise `DataError`."""
        items: dict[str, MemoryItem] = {}
        fresh = 0
        for entry in entries:
            item = entry if isinstance(entry, MemoryItem) else MemoryItem(str(fresh), entry)
            if not item.text.strip() or not item.id or item.id in items:
                problem = f"the id {item.id!r} occurs twice" if item.id in items else f"{item!r:.200} has no id or no text"
                raise DataError(f"Not a memory bank: {problem}.")
            items[item.id] = item
            fresh = max(fresh, _number(item.id) + 1)
        return cls(items)

    def items(self, *, closed: bool = False) -> tuple[MemoryItem, ...]:
        """Live items in the order of insertion; with `closed` also those whose validity has ended. Never deleted ones."""
        return tuple(item for item in self._items.values() if item.id not in self._deleted and (closed or item.valid_until is None))

    def get(self, id: str, *, closed: bool = False) -> MemoryItem | None:
        """The live item of this id (with `closed` also a closed one), or None."""
        item = self._items.get(id)
        return item if item is not None and id not in self._deleted and (closed or item.valid_until is None) else None

    @property
    def deleted(self) -> tuple[MemoryItem, ...]:
        """Tombstones in the order of insertion. Their ids are not given again."""
        return tuple(item for item in self._items.values() if item.id in self._deleted)

    def history(self, id: str) -> tuple[str, ...]:
        """Every text the fact ever had, oldest first, the last one included; also of deleted and closed items. () if unknown."""
        texts: tuple[str, ...] = ()
        item = self._items.get(id)
        seen: set[str] = set()
        while item is not None and item.id not in seen:  # a file may name predecessors in a circle
            seen.add(item.id)
            texts = (*item.history, item.text, *texts)
            item = self._items.get(item.replaces) if item.replaces is not None else None
        return texts

    def __len__(self) -> int:
        return len(self.items())

    def __iter__(self) -> Iterator[MemoryItem]:
        return iter(self.items())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, MemoryBank):
            return NotImplemented
        return self._deleted == other._deleted and list(self._items.values()) == list(other._items.values())

    def __hash__(self) -> int:
        return hash((tuple(self._items.values()), self._deleted))

    def __str__(self) -> str:
        return "\n".join(f"{item.id}: {item.text}" for item in self)

    def __repr__(self) -> str:
        return f"MemoryBank({len(self)} live, {len(self._deleted)} deleted)"

    def apply(
        self, ops: Iterable[MemoryOp], *, write_policy: WritePolicy = "crud", capacity: int | None = None,
        when: str = "", source: str = "", owner: str = "",
    ) -> Applied:  # fmt: skip
        """Execute operations one by one: one that is rejected changes nothing, the others still apply.

        `when`: the event's time, `source`: the turn's id, `owner`: the namespace of ADDs that name none. `capacity`: most
        live items. What is rejected is the same under each policy, but for `capacity` and equal texts, which follow what is
        really written: `crud` overwrites and deletes; under `add_only` an UPDATE is executed (and reported) as the ADD of its
        text and a DEL as NONE; under `temporal` both close the old fact with `when`, an UPDATE's text is a new item that
        `replaces` it. There the dates of events count, as far as texts name them (`dates.earlier`), not the order of telling: what
        is older than the fact goes before it, closed, and does not end it; and what is told again in the same words is counted.
        An unknown policy raises `ConfigError`.
        """
        if write_policy not in WRITE_POLICIES:
            raise ConfigError(f"Unknown write_policy {write_policy!r}. Known: {', '.join(WRITE_POLICIES)}.")
        counts = self._counts or write_policy == "temporal"
        return _Edit(self, write_policy, capacity, as_date(when, "when"), source, owner, counts).all(ops)

    def make_room(self, ops: Sequence[MemoryOp], capacity: int | None, write_policy: WritePolicy = "crud", when: str = "") -> MemoryBank:
        """The bank without the items added longest ago, as many as `ops` would find in the way; those that `ops` name stay.

        Under `temporal` they are closed with `when`, else deleted, also where `add_only` lets no operation delete.
        """
        if capacity is None or len(self) + len(ops) <= capacity:
            return self
        closing: WritePolicy = "temporal" if write_policy == "temporal" else "crud"
        named = {op.id for op in ops}
        oldest = [item for item in self.items() if item.id not in named]
        for number in range(len(oldest) + 1):
            room = MemoryBank.apply(self, [MemoryOp("DEL", item.id) for item in oldest[:number]], write_policy=closing).bank
            done = _Edit(room, write_policy, capacity, "", "", "", self._counts or closing == "temporal").all(ops)
            if all(one.reason != FULL for one in done.rejected):
                break
        bank, groups = self, dict[str, list[MemoryOp]]()
        for item in oldest[:number]:  # what is closed for want of room, and not for news, ends no sooner than it began
            groups.setdefault(item.begun if earlier(when, item.begun) else when, []).append(MemoryOp("DEL", item.id))
        for end, gone in groups.items():
            bank = bank.apply(gone, write_policy=closing, when=end).bank
        return bank

    def to_json(self) -> str:
        """One line of JSON with everything, tombstones included; `from_json` gives an equal bank."""
        rows = [item.to_dict() for item in self._items.values()]
        return json.dumps({"format": FORMAT, "items": rows, "deleted": sorted(self._deleted)}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> MemoryBank:
        """The bank that `to_json` wrote; anything else raises `DataError`."""
        try:
            value = json.loads(text)
        except ValueError as error:
            raise DataError(f"A memory bank's JSON is broken: {error}") from error
        rows, deleted = (value.get("items"), value.get("deleted")) if isinstance(value, dict) else (None, None)
        if not isinstance(rows, list) or not isinstance(deleted, list) or value.get("format") != FORMAT:
            raise DataError(f"Not a memory bank of format {FORMAT}: {text:.80}")
        bank = cls.of(MemoryItem.from_dict(row) for row in rows)
        if unknown := [id for id in deleted if not isinstance(id, str) or id not in bank._items]:
            raise DataError(f"A memory bank's JSON calls items deleted that it does not hold: {unknown!r:.80}")
        return cls(bank._items, frozenset(deleted))


class _Edit:
    """The working copy of one `apply`: a new table of the same items."""

    def __init__(self, bank: MemoryBank, policy: str, capacity: int | None, when: str, source: str, owner: str, counts: bool) -> None:
        self.items, self.deleted, self.live = dict(bank._items), set(bank._deleted), len(bank)
        self.policy, self.capacity, self.when, self.owner, self.counts = policy, capacity, when, as_name(owner, "owner"), counts
        self.sources = (source,) if source else ()
        self.fresh = max(map(_number, self.items), default=-1) + 1
        self.changed: set[str] = set()
        self.added: set[tuple[str, str]] = set()
        self.same: dict[tuple[str, str], str] | None = None

    def all(self, ops: Iterable[MemoryOp]) -> Applied:
        """Execute what is not refused."""
        applied: list[MemoryOp] = []
        rejected: list[Rejection] = []
        for op in ops:
            reason = self.refusal(op)
            if reason is None:
                applied.append(self.execute(op))
            else:
                rejected.append(Rejection(op, reason))
        return Applied(MemoryBank(self.items, frozenset(self.deleted)), tuple(applied), tuple(rejected))

    def refusal(self, op: MemoryOp) -> str | None:
        """Why the operation must not be executed; None if it may."""
        if op.kind == "NONE":
            return None
        if op.id is not None and op.id in self.changed:
            return DUPLICATE_ID
        item = None if op.id is None else self._live(op.id)
        if op.kind == "ADD" and item is not None:
            return ID_IN_USE
        if op.kind != "ADD" and item is None:
            return UNKNOWN_ID
        if item is not None and op.owner not in ("", item.owner):
            return OTHER_OWNER
        if op.kind == "DEL" and item is not None and self.policy == "temporal" and earlier(self.when, item.begun):
            return OLD_NEWS
        return None if op.kind == "DEL" else self._text_refusal(op, item)

    def _text_refusal(self, op: MemoryOp, item: MemoryItem | None) -> str | None:
        if not op.text.strip():
            return NO_TEXT
        if op.kind == "ADD" or self.policy == "add_only":
            # An ADD that names its id comes from `diff` or a log, never from a policy: two items may hold one text.
            unnamed = op.kind == "UPDATE" or not op.id
            if unnamed and (self._owner(op, item), op.text) in self.added:
                return DUPLICATE_TEXT
            if unnamed and self._twin(self._owner(op, item), op.text) is not None:
                return None
            if self.capacity is not None and self.live >= self.capacity:
                return FULL
        return None

    def execute(self, op: MemoryOp) -> MemoryOp:
        """Carry out what was not refused; returns it as executed."""
        if op.kind == "NONE":
            return MemoryOp("NONE", op.id)
        if op.kind == "ADD":
            return self._add(op, None)
        assert op.id is not None, "an UPDATE or DEL without an id was refused"
        item = self.items[op.id]
        self.changed.add(item.id)
        if self.policy == "add_only":
            return MemoryOp("NONE", item.id) if op.kind == "DEL" else self._add(replace(op, id=None), item)
        if self.policy == "temporal":
            if op.kind == "UPDATE" and op.text == item.text:
                self._again(item)
                return op
            if op.kind == "UPDATE" and earlier(self.when, item.begun):
                self._before(op.text, item)
                return op
            self.items[item.id] = replace(item, valid_until=self.when)
            self.live -= 1
            if op.kind == "UPDATE":
                self._add(replace(op, id=None), item)
        elif op.kind == "UPDATE":
            self.items[item.id] = self._rewritten(item, op.text)
        else:
            self.items[item.id] = replace(item, updated=self.when or item.updated)
            self.deleted.add(item.id)
            self.live -= 1
        return op

    def _add(self, op: MemoryOp, old: MemoryItem | None) -> MemoryOp:
        """A new item; under a named id of old, the same fact again with its history."""
        owner = self._owner(op, old)
        twin = None if op.id or (old is not None and self.policy == "temporal") else self._twin(owner, op.text)
        if twin is not None:
            self._again(twin)
            return MemoryOp("ADD", None, op.text, owner)
        id = op.id or str(self.fresh)
        if id in self.items:
            self.items[id] = replace(self._rewritten(self.items[id], op.text), owner=owner, valid_until=None)
            self.deleted.discard(id)
        else:
            replaces = old.id if old is not None and self.policy == "temporal" else None
            self.items[id] = MemoryItem(id, op.text, owner, self.when, self.when, sources=self.sources, replaces=replaces)
        self.fresh = max(self.fresh, _number(id) + 1)
        self.live += 1
        self.changed.add(id)
        self.added.add((owner, op.text))
        if self.same is not None:
            self.same[owner, op.text] = id
        return MemoryOp("ADD", id, op.text, owner)

    def _twin(self, owner: str, text: str) -> MemoryItem | None:
        """The live item that says the same, where such are counted."""
        if not self.counts:
            return None
        if self.same is None:
            self.same = {(item.owner, item.text): item.id for item in reversed(self.items.values()) if self._live(item.id)}
        item = self._live(self.same.get((owner, text), ""))
        return item if item is not None and (item.owner, item.text) == (owner, text) else None

    def _again(self, item: MemoryItem) -> None:
        """Count a fact that is told again."""
        self.items[item.id] = replace(item, told=item.told + 1, sources=tuple(dict.fromkeys((*item.sources, *self.sources))))
        self.added.add((item.owner, item.text))

    def _before(self, text: str, item: MemoryItem) -> None:
        """Keep older news of a fact: closed, in its place among those that the fact took over from."""
        newer, older, seen = item, self.items.get(item.replaces or ""), {item.id}
        while older is not None and older.id not in seen and earlier(self.when, older.begun):
            seen.add(older.id)
            newer, older = older, self.items.get(older.replaces or "")
        id, self.fresh = str(self.fresh), self.fresh + 1
        self.items[id] = MemoryItem(
            id, text, item.owner, self.when, self.when, valid_until=newer.begun, sources=self.sources, replaces=newer.replaces
        )
        self.items[newer.id] = replace(newer, replaces=id)
        if older is not None and older.valid_until is not None and earlier(self.when, older.valid_until):
            self.items[older.id] = replace(older, valid_until=self.when)
        self.changed |= {id, item.id}

    def _rewritten(self, item: MemoryItem, text: str) -> MemoryItem:
        sources = item.sources if set(self.sources) <= set(item.sources) else item.sources + self.sources
        history = (*item.history, item.text)
        return replace(item, text=text, updated=self.when or item.updated, version=item.version + 1, history=history, sources=sources)

    def _owner(self, op: MemoryOp, old: MemoryItem | None) -> str:
        return old.owner if old is not None else op.owner or self.owner

    def _live(self, id: str) -> MemoryItem | None:
        item = self.items.get(id)
        return item if item is not None and id not in self.deleted and item.valid_until is None else None


def diff(a: MemoryBank, b: MemoryBank) -> tuple[MemoryOp, ...]:
    """The operations that lead from `a` to `b`: `a.apply(diff(a, b)).bank` has the live ids and texts of `b`.

    They name the ids of what they add, so that an item which `a` deleted and `b` still holds comes back under its own id. No
    policy can ask for that: what is parsed from a model never names the id of an ADD.
    """
    old, new = ({item.id: item for item in bank} for bank in (a, b))
    gone = [MemoryOp("DEL", id) for id in old if id not in new]
    changed = [MemoryOp("UPDATE", id, item.text) for id, item in new.items() if id in old and old[id].text != item.text]
    added = [MemoryOp("ADD", id, item.text, item.owner) for id, item in new.items() if id not in old]
    return (*gone, *changed, *added)


def _number(id: str) -> int:
    """The id as a number, -1 for a name: new ids go on after the highest number."""
    return int(id) if id.isdecimal() and len(id) <= 18 else -1
