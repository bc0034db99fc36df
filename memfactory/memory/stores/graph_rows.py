"""How memories are a graph: its nodes, its edges and every statement about them. Knows no client.

    (:User {key, name, born, revision, memories})-[:OWNS]->(:Memory {key, user, id, text, owner, ..., position, state, revision})
    (:Memory)-[:MENTIONS]->(:Entity {key, user, name})        names in the text (`entities.names`), not of deleted items
    (:Memory)-[:IN_SESSION]->(:Session {key, user, name})     where it comes from (`entities.sessions`)
    (:Memory)-[:SUPERSEDES]->(:Memory)                        the closed item that it took over from (temporal policy)

Items are related through the entities that they share: an edge for each pair of them would grow with the square. Nodes are
found by a `key` of hashes, a memory's is its key in Milvus too: no name can reach another's nodes, and what an index may still
hold of a purged user says nothing. Values are never part of a statement.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from memfactory.memory.items import MemoryItem
from memfactory.memory.stores.milvus_rows import key_of
from memfactory.memory.stores.rows import Row

SCHEMA = tuple(
    f"CREATE CONSTRAINT {label.lower()}_key IF NOT EXISTS FOR (n:{label}) REQUIRE n.key IS UNIQUE"
    for label in ("User", "Memory", "Entity", "Session")
)
USERS = "MATCH (u:User) RETURN u.name"
SEEN = "MATCH (u:User {key: $user}) RETURN u.born, u.revision, u.memories"
# Setting a property takes the node's lock; what is read after it is what the last writer left.
LOCK = """
MERGE (u:User {key: $user}) ON CREATE SET u.name = $name, u.born = $stamp, u.revision = 0, u.memories = 0
SET u.writer = $stamp WITH u RETURN u.born, u.revision, u.memories"""
UNLOCK = "MATCH (u:User {key: $user}) SET u.revision = $revision, u.memories = $memories"
FIELDS = ("id", "text", "owner", "created", "updated", "version", "history", "valid_until", "sources", "replaces", "told")
CHANGED = (
    "MATCH (:User {key: $user})-[:OWNS]->(m:Memory) WHERE m.revision > $after "
    f"RETURN m.revision, m.position, m.state, {', '.join(f'm.{name}' for name in FIELDS)}"
)
ADD = "MATCH (u:User {key: $user}) UNWIND $rows AS row CREATE (u)-[:OWNS]->(m:Memory) SET m = row"
CHANGE = "UNWIND $rows AS row MATCH (m:Memory {key: row.key}) SET m = row"
UNRELATE = "UNWIND $rows AS row MATCH (:Memory {key: row.key})-[r:MENTIONS|IN_SESSION]->() DELETE r"
MENTION = """
UNWIND $rows AS row MATCH (m:Memory {key: row.key})
MERGE (e:Entity {key: row.other}) ON CREATE SET e.user = $name, e.name = row.name CREATE (m)-[:MENTIONS]->(e)"""
PLACE = """
UNWIND $rows AS row MATCH (m:Memory {key: row.key})
MERGE (s:Session {key: row.other}) ON CREATE SET s.user = $name, s.name = row.name CREATE (m)-[:IN_SESSION]->(s)"""
SUPERSEDE = """
UNWIND $rows AS row MATCH (m:Memory {key: row.key}) MATCH (old:Memory {key: row.other})
CREATE (m)-[:SUPERSEDES]->(old)"""
# What has many edges goes first, the oldest edge first: an edge is found from its end with few, or at the start of the list.
PURGE = (
    "MATCH (:User {key: $user})-[r:OWNS]->(m:Memory) WITH r ORDER BY m.position DELETE r",
    "MATCH (u:User {key: $user}) DELETE u",
    "MATCH (e:Entity {user: $name}) DETACH DELETE e",
    "MATCH (s:Session {user: $name}) DETACH DELETE s",
    "MATCH (m:Memory {user: $name}) DETACH DELETE m",
)
# A name that few memories share relates them more than one that is everywhere.
RELATED = """
UNWIND $keys AS found MATCH (:Memory {key: found})-[:MENTIONS]->(e:Entity)<-[:MENTIONS]-(n:Memory)
WHERE n.state = 'live' AND NOT n.key IN $keys AND ($owner IS NULL OR n.owner = $owner)
WITH e, collect(DISTINCT n.position) AS near, count(DISTINCT n) AS shared UNWIND near AS other
RETURN other, sum(1.0 / shared) AS weight"""


def memory_key(user: str, position: int) -> str:
    """A memory's key: its place among all that the user ever had, which stays."""
    return f"{key_of(user)}/{position}"


def properties(user: str, row: Row, revision: int) -> dict[str, Any]:
    """A memory's node."""
    item = {name: getattr(row.item, name) for name in FIELDS} | {"history": [*row.item.history], "sources": [*row.item.sources]}
    where = {"key": memory_key(user, row.position), "user": user, "position": row.position}
    return where | item | {"state": row.state, "revision": revision}


def row_of(position: int, state: str, values: Sequence[Any]) -> Row:
    """The row of a memory's node, from `CHANGED`."""
    item = dict(zip(FIELDS, values, strict=True))
    item |= {"history": item["history"] or (), "sources": item["sources"] or (), "told": 1 if item["told"] is None else item["told"]}
    return Row(MemoryItem(**item), position, state == "deleted")


def named_edges(user: str, named: Iterable[tuple[Row, Iterable[str]]]) -> list[dict[str, str]]:
    """From each memory to what has these names, for `MENTION` and `PLACE`."""
    return [
        {"key": memory_key(user, row.position), "other": f"{key_of(user)}/{key_of(name)}", "name": name}
        for row, names in named
        for name in names
    ]


def succession(user: str, rows: Sequence[Row], positions: dict[str, int]) -> list[dict[str, str]]:
    """From each new memory to the one that it replaces, for `SUPERSEDE`; `positions`: id -> position of all of the user's."""
    replaced = [(row.position, positions.get(row.item.replaces)) for row in rows if row.item.replaces is not None]
    return [{"key": memory_key(user, at), "other": memory_key(user, old)} for at, old in replaced if old is not None]
