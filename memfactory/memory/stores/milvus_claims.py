"""One writer of a user among several processes at a Milvus server, which has no locks and no transactions."""

from __future__ import annotations

import random
import time
import uuid
from typing import Any

from memfactory.common.errors import StoreError
from memfactory.memory.stores.milvus_rows import is_user, mark_of

LEASE = 30.0
"""Seconds that a writer may hold a user."""


def claim(client: Any, collection: str, user: str, dim: int, timeout: float) -> tuple[str, float]:
    """Leave a row that says "I write"; its key when there is no other, and until when it counts (`time.monotonic`).

    Reads are strongly consistent, so of two writers that each see no other, one would have looked before it had written.
    Of those who meet, all but the one with the first key take theirs back; a dead writer's counts for nothing after `LEASE`,
    by the clocks of the machines, which may differ by some seconds: a writer uses half of it.
    """
    until = time.monotonic() + timeout
    while True:
        key = f"lock/{uuid.uuid4().hex}"
        client.upsert(collection, [mark_of(user, key, "lock", str(time.time() + LEASE), dim)], timeout=timeout)
        held_until = time.monotonic() + LEASE / 2
        while (others := _others(client, collection, user, key, timeout)) and key < min(others) and time.monotonic() < until:
            time.sleep(random.uniform(0.005, 0.02))
        if not others:
            return key, held_until
        client.delete(collection, ids=[key], timeout=timeout)
        if time.monotonic() > until:
            raise StoreError(f"Another process has been writing to user {user!r} for {timeout:g} s. Try again.")
        time.sleep(random.uniform(0.01, 0.05))


def _others(client: Any, collection: str, user: str, own: str, timeout: float) -> list[str]:
    where = f'{is_user(user)} and state == "lock"'
    rows = client.query(collection, filter=where, output_fields=["key", "payload"], timeout=timeout)
    dead = [row["key"] for row in rows if float(row["payload"]) < time.time()]
    if dead:
        client.delete(collection, ids=dead, timeout=timeout)
    return [row["key"] for row in rows if row["key"] not in (own, *dead)]
