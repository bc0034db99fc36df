"""What was made of a bank, brought into that bank as it is now: others may have written meanwhile. Knows no store and no policy.

Nobody's work is lost. What is new is added, under a new id if its own was given away; a text that changed is written over what
stands there now, which goes to the item's history; but an item is deleted or closed only if it is still what was looked at.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from memfactory.memory.bank import MemoryBank, _number
from memfactory.memory.items import UNKNOWN_ID, MemoryItem, MemoryOp, Rejection

CHANGED = "changed meanwhile"
"""Why an item that somebody else rewrote is not deleted: the key of a count, like the bank's reasons."""


@dataclass(frozen=True, slots=True)
class Edit:
    """One memory that came, changed or went. Example: Edit(MemoryOp("UPDATE", "3", "Alice lives in Rome"), "Alice lives in Paris")."""

    op: MemoryOp
    """As executed: it names the item, of an UPDATE the one that holds the new text (the temporal policy makes a new one). NONE is
    of a fact that was told again in the same words."""
    old: str = ""
    """The text before; "" of what is new."""


@dataclass(frozen=True, slots=True)
class Merged:
    """What came of a merge."""

    bank: MemoryBank
    edits: tuple[Edit, ...] = ()
    rejected: tuple[Rejection, ...] = ()
    """What no longer fits."""


def merged(now: MemoryBank, before: MemoryBank, after: MemoryBank) -> Merged:
    """`after`, which was made of `before`, as an edit of `now`. If `now` equals `before`, the bank is exactly `after`."""
    merge = _Merge(now, before, after)
    for id, item in before._items.items():
        if id not in after._items:
            merge.dropped(item)
    for id, item in after._items.items():
        if id in before._items:
            merge.known(before._items[id], item)
        else:
            merge.new(item)
    return Merged(MemoryBank(merge.items, frozenset(merge.deleted)), tuple(merge.edits), tuple(merge.rejected))


class _Merge:
    """The working copy of `now`."""

    def __init__(self, now: MemoryBank, before: MemoryBank, after: MemoryBank) -> None:
        self.now, self.before, self.after = now, before, after
        self.items, self.deleted = dict(now._items), set(now._deleted)
        self.fresh = max(map(_number, [*now._items, *after._items]), default=-1) + 1
        self.renamed: dict[str, str] = {}
        self.heir_of = {item.id: old for item in after if item.id not in before._items and (old := self._ancestor(item)) is not None}
        """Of new items those that took over from one that was there, and its id: a change, not a loss and a gain."""
        self.inherited = set(self.heir_of.values())
        both = [(before._items[id], item) for id, item in after._items.items() if id in before._items]
        self.past = {item.replaces for old, item in both if item.replaces != old.replaces}
        """New items that are older news of one that was there."""
        self.edits: list[Edit] = []
        self.rejected: list[Rejection] = []

    def dropped(self, old: MemoryItem) -> None:
        """An item that `after` does not have at all: of a bank that was built anew."""
        if self.before.get(old.id) is not None:
            self._gone(old)

    def known(self, old: MemoryItem, item: MemoryItem) -> None:
        """An item that `before` had."""
        if item == old and _tombstone(self.before, old) == _tombstone(self.after, item):
            return
        lived, lives = self.before.get(old.id) is not None, self.after.get(item.id) is not None
        if self._untouched(old):
            self._put(item, deleted=_tombstone(self.after, item))
            if lives and not lived:
                self.edits.append(Edit(MemoryOp("ADD", item.id, item.text, item.owner)))
            elif lives and item.text != old.text:
                self.edits.append(Edit(MemoryOp("UPDATE", item.id, item.text), old.text))
            elif lived and not lives and old.id not in self.inherited:
                self.edits.append(Edit(MemoryOp("DEL", old.id), old.text))
            elif item.told > old.told:
                self.edits.append(Edit(MemoryOp("NONE", item.id, item.text), item.text))
        elif lives and (item.text != old.text or not lived):
            self._rewrite(item)
        elif not lives and lived:
            self._gone(old)
        elif item.told > old.told and (here := self.now.get(item.id)) is not None:
            self._put(replace(here, told=here.told + item.told - old.told), deleted=False)
            self.edits.append(Edit(MemoryOp("NONE", item.id, here.text), here.text))

    def new(self, item: MemoryItem) -> None:
        """An item that `after` made."""
        id = item.id
        if id in self.items:
            id, self.fresh = str(self.fresh), self.fresh + 1
            self.renamed[item.id] = id
        replaces = item.replaces if item.replaces is None else self.renamed.get(item.replaces, item.replaces)
        same = (id, replaces) == (item.id, item.replaces)
        self._put(item if same else replace(item, id=id, replaces=replaces), deleted=_tombstone(self.after, item))
        if self.after.get(item.id) is not None or item.id in self.past:
            over = self.heir_of.get(item.id)
            op = MemoryOp("ADD", id, item.text, item.owner) if over is None else MemoryOp("UPDATE", id, item.text)
            self.edits.append(Edit(op, "" if over is None else self.before._items[over].text))

    def _gone(self, old: MemoryItem) -> None:
        """Delete what is still what was looked at."""
        if self._untouched(old):
            self._put(old, deleted=True)
            self.edits.append(Edit(MemoryOp("DEL", old.id), old.text))
        elif self.now.get(old.id) is not None and old.id not in self.inherited:
            self.rejected.append(Rejection(MemoryOp("DEL", old.id), CHANGED))

    def _rewrite(self, item: MemoryItem) -> None:
        """A new text over what somebody else wrote."""
        here, op = self.now.get(item.id), MemoryOp("UPDATE", item.id, item.text)
        if here is None:
            self.rejected.append(Rejection(op, UNKNOWN_ID))
        elif here.text != item.text:
            sources = tuple(dict.fromkeys((*here.sources, *item.sources)))
            self._put(
                replace(
                    here, text=item.text, updated=item.updated or here.updated, version=here.version + 1,
                    history=(*here.history, here.text), sources=sources,
                ),
                deleted=False,
            )  # fmt: skip
            self.edits.append(Edit(op, here.text))

    def _ancestor(self, item: MemoryItem) -> str | None:
        """The live item of `before` from which a new one took over, perhaps through others that came and went."""
        seen: set[str] = set()
        id = item.replaces
        while id is not None and id not in self.before._items and id in self.after._items and id not in seen:
            seen.add(id)
            id = self.after._items[id].replaces
        return id if id is not None and self.before.get(id) is not None else None

    def _untouched(self, old: MemoryItem) -> bool:
        return self.now._items.get(old.id) == old and _tombstone(self.now, old) == _tombstone(self.before, old)

    def _put(self, item: MemoryItem, *, deleted: bool) -> None:
        self.items[item.id] = item
        (self.deleted.add if deleted else self.deleted.discard)(item.id)


def _tombstone(bank: MemoryBank, item: MemoryItem) -> bool:
    return item.id in bank._deleted
