"""How an item is a row of Milvus: keys, fields, payload. Knows no client.

A user's or an owner's name is never part of an expression: rows are found by its SHA-256, so no name can reach another's rows.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from memfactory.common.errors import DataError
from memfactory.memory.items import MemoryItem
from memfactory.memory.search import DIGITS
from memfactory.memory.stores.rows import Hits, Row, best

MAX_BYTES = 65_535
"""Of a text field."""
LENGTHS = {"key": 128, "user_key": 64, "owner_key": 64, "state": 16, "payload": MAX_BYTES}
"""Text fields; `key` is the primary one. Beside them stand the number `position` and the `vector`."""


def key_of(name: str) -> str:
    """What stands for a user's or an owner's name: 32 hex digits after a letter, which is a partition's name too."""
    return "n" + hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def is_user(user: str) -> str:
    """The expression for the user's rows."""
    return f'user_key == "{key_of(user)}"'


def fields_of(user: str, row: Row, dim: int) -> dict[str, Any]:
    """An item's fields. One that is too long for a row raises `DataError`."""
    payload = _packed(row.item.to_dict() | {"user": user, "deleted": row.deleted})
    if len(payload) > MAX_BYTES:
        raise DataError(
            f"Memory {row.item.id!r} of user {user!r}, with its {len(row.item.history)} older texts, takes more than the {MAX_BYTES} "
            "bytes that Milvus keeps in a row. Delete it and add its text anew, or keep shorter texts."
        )
    vector = np.zeros(dim, np.float32) if row.vector is None else row.vector
    fields = {"user_key": key_of(user), "owner_key": key_of(row.item.owner), "state": row.state, "payload": payload}
    return fields | {"key": f"{key_of(user)}/{row.position}", "position": row.position, "vector": vector}


def mark_of(user: str, key: str, state: str, payload: str, dim: int) -> dict[str, Any]:
    """The fields of a row of the user that is no item."""
    fields = {"user_key": key_of(user), "owner_key": "", "state": state, "payload": payload}
    return fields | {"key": key, "position": -1, "vector": np.zeros(dim, np.float32)}


def row_of(fields: Mapping[str, Any]) -> Row:
    """The row of `payload` and `position`; what is no item raises `DataError`."""
    value = unpacked(fields["payload"])
    return Row(MemoryItem.from_dict(value), fields["position"], bool(value.get("deleted")))


def unpacked(payload: str) -> dict[str, Any]:
    """The item's fields, its `user` and whether it is `deleted`; anything else raises `DataError`."""
    try:
        value = json.loads(payload if payload.startswith("{") else zlib.decompress(base64.b64decode(payload)))
    except (ValueError, zlib.error) as error:
        raise DataError(f"a row of Milvus cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise DataError(f"a row of Milvus is no memory: {value!r:.80}")
    return value


def _packed(value: dict[str, Any]) -> str:
    """The value as JSON whose characters are its bytes or more; compressed if that would not fit, as long histories do well."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        size = len(text.encode())
    except UnicodeEncodeError:  # half a surrogate pair has no UTF-8, but an escape
        text = json.dumps(value)
        size = len(text)
    return text if size <= MAX_BYTES else base64.b64encode(zlib.compress(text.encode(), 9)).decode()


def cuts_a_tie(hits: Sequence[Any], k: int, limit: int) -> bool:
    """Whether items that are as near as the k-th may have been left out."""
    return len(hits) == limit and round(hits[-1]["distance"], DIGITS) >= round(hits[k - 1]["distance"], DIGITS)


def best_of(hits: Sequence[Any], k: int) -> Hits:
    """The k best of Milvus's hits."""
    items, distances = [], []
    for hit in sorted(hits, key=lambda hit: hit["entity"]["position"]):
        with suppress(DataError):  # said when the user is loaded
            items.append(row_of(hit["entity"]).item)
            distances.append(hit["distance"])
    return best(items, np.array(distances), k)
