"""Promise: one bad row costs that row and is named; a folder of memories that is not whole is an error that changes nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from stores_helpers import BACKENDS, DIM, Backend
from test_stores import _params

from memfactory.common.errors import ConfigError, DataError, StoreError
from memfactory.memory.embedders import HashedEmbedder
from memfactory.memory.items import MemoryItem
from memfactory.memory.stores import MemoryStore, milvus_files, open_store
from memfactory.memory.stores.milvus import MilvusStore
from memfactory.memory.stores.neo4j import Neo4jStore

EMBEDDER = HashedEmbedder(dim=DIM)
ODD = [
    MemoryItem("nul", "a\0b", "o\0", "\0", "", history=("\0",), sources=("\0", "")),
    MemoryItem("half", "\ud800 and \udfff", "\udc80", "\ud800", valid_until="\ud800"),
    MemoryItem("quotes", "\"'\\`${}{%s}\n\r\t\x1b[31m\u2028\ufeff", sources=('"', "'; DROP", "$user")),
    MemoryItem("long", "語" * 20_000, "o" * 5000, history=("word " * 9000, "語" * 3000), version=2**40, told=7),
    MemoryItem("9" * 30, " x ", replaces="nobody", valid_until=""),
]


@pytest.mark.parametrize("backend", _params(BACKENDS))
def test_odd_values_come_back_as_they_were(backend: Backend, tmp_path: Path) -> None:
    with backend.open(tmp_path) as store:
        store.add("alice", ODD)
        store.add("alice", ["dated"], when=1.7e9)  # type: ignore[arg-type]
        for bad in (None, 3, ["x"], b"x"):
            with pytest.raises(DataError):
                store.update("alice", "nul", bad)  # type: ignore[arg-type]
            with pytest.raises(DataError):
                store.add("alice", ["x"], when={}, source="s")  # type: ignore[arg-type]
        store.add("alice", "one text is one memory")
        kept = store.bank("alice")
    if backend.persistent:
        with backend.open(tmp_path) as store:
            assert store.bank("alice") == kept and [i.id for i in kept.items(closed=True)][:5] == [i.id for i in ODD]
            assert kept.items()[-1].text == "one text is one memory" and kept.items()[-2].created.startswith("2023-11-14")
            assert store.search("alice", "one text is one memory", 1)[0][1] == pytest.approx(1)


def spoil(store: MemoryStore, position: int, payload: str) -> None:
    """Write over a row as a defect would have written it."""
    if isinstance(store, MilvusStore):
        with store._milvus.use() as client:
            (row,) = client.query(store._name, filter=f"position == {position}", output_fields=["*"])
            client.upsert(store._name, [dict(row) | {"payload": payload}], **({} if store.shared else {"partition_name": row["user_key"]}))
    else:
        assert isinstance(store, Neo4jStore)
        store._graph.run("MATCH (m:Memory {position: $position}) SET m.version = $bad", {"position": position, "bad": "three"})


@pytest.mark.parametrize("backend", [p for p in _params(BACKENDS) if p.values[0].persistent])
@pytest.mark.parametrize("position", [0, 2])
def test_a_bad_row_is_named_and_the_others_are_read(
    backend: Backend, position: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    texts = ["tea is hot", "rome is old", "oslo is cold", "bob sleeps"]
    with backend.open(tmp_path) as store:
        store.add("alice", texts)
        spoil(store, position, json.dumps({"id": "2", "text": ["not", "a", "text"], "user": "alice"}))
    with backend.open(tmp_path) as store:
        readable = [text for at, text in enumerate(texts) if at != position]
        assert [item.text for item in store.list("alice")] == readable
        assert list(store.unreadable("alice")) == [position] and store.unreadable("bob") == {}
        assert f"Memory number {position} of user 'alice' cannot be read, 1 in all" in caplog.text
        assert store.namespaces() == ("alice",)
        assert [item.text for item, _ in store.search("alice", "oslo is cold", 9)][-1] in readable
        assert [item.id for item in store.add("alice", ["new"])] == ["4"]
        store.update("alice", "1", "rome fell")
    with backend.open(tmp_path) as store:
        assert {item.text for item in store.list("alice")} == {*readable, "new", "rome fell"} - {"rome is old"}
        assert list(store.unreadable("alice")) == [position], "it stays as it was, for whoever can mend it"


def test_what_was_written_with_a_number_for_a_date_is_readable_again(tmp_path: Path) -> None:
    pytest.importorskip("milvus_lite")
    with open_store("milvus", {"uri": str(tmp_path / "m.db")}, embedder=EMBEDDER) as store:
        store.add("alice", ["tea"])
        spoil(store, 0, json.dumps({"id": "0", "text": "tea", "created": 1.7e9, "user": "alice", "deleted": False}))
    with open_store("milvus", {"uri": str(tmp_path / "m.db")}, embedder=EMBEDDER) as store:
        assert store.list("alice")[0].created == "2023-11-14T22:13:20+00:00" and store.unreadable("alice") == {}


# Milvus Lite's folder.


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """A folder that was closed, and a copy of it as a kill leaves it, with memories in the log."""
    pytest.importorskip("milvus_lite")
    place = tmp_path_factory.mktemp("damage")
    with open_store("milvus", {"uri": str(place / "m.db")}, embedder=EMBEDDER) as store:
        store.add("alice", ["one", "two"])
        store.add("bob", ["tea"])
        store.add("alice", ["three"])
        shutil.copytree(place / "m.db", place / "killed")
    yield {"closed": place / "m.db", "killed": place / "killed"}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + bytes(byte ^ 255 for byte in data[len(data) // 2 :][:8]) + data[len(data) // 2 + 8 :])


@pytest.mark.parametrize("state", ["closed", "killed"])
@pytest.mark.parametrize("damage", [Path.unlink, cut, flip, lambda path: path.write_bytes(b"")], ids=["gone", "cut", "flipped", "empty"])
def test_no_file_of_memories_can_be_damaged_unseen(
    folders: dict[str, Path], state: str, damage: Callable[[Path], Any], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    whole = folders[state]
    milvus_files.check(whole)
    names = ("manifest.json", "schema.json", ".parquet", ".arrow", milvus_files.NOTES)
    files = [file.relative_to(whole) for file in sorted(whole.rglob("*")) if file.name.endswith(names)]
    assert any(file.suffix == (".parquet" if state == "closed" else ".arrow") for file in files)
    unseen = []
    for number, file in enumerate(files):
        shutil.copytree(whole, copy := tmp_path / str(number))
        damage(copy / file)
        before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
        try:
            milvus_files.check(copy)
            unseen.append(file)
        except StoreError as error:
            assert "are damaged" in str(error) and "Nothing was changed" in str(error)
        assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before
    inside = {file for file in unseen if file.suffix == ".parquet" and "flipped" in request.node.name}  # Milvus reads those itself
    assert {file.name for file in set(unseen) - inside} <= {milvus_files.NOTES}, unseen


@pytest.mark.parametrize("gone", ["collections", "collections/memfactory", "collections/memfactory/partitions"])
def test_a_folder_that_is_gone_is_no_empty_memory(folders: dict[str, Path], gone: str, tmp_path: Path) -> None:
    shutil.copytree(folders["closed"], tmp_path / "m.db")
    shutil.rmtree(tmp_path / "m.db" / gone)
    with pytest.raises(StoreError, match="are damaged"):
        open_store("milvus", {"uri": str(tmp_path / "m.db")}, embedder=EMBEDDER)


def test_a_folder_of_other_things_is_not_filled_with_memories(tmp_path: Path) -> None:
    pytest.importorskip("milvus_lite")
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match=r"a folder with other things in it \(thesis.tex, ...\)"):
        open_store("milvus", {"uri": str(tmp_path)}, embedder=EMBEDDER)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_collection_of_something_else_is_refused(tmp_path: Path) -> None:
    milvus_lite = pytest.importorskip("milvus_lite.adapter.grpc.server")
    from pymilvus import MilvusClient

    server, database, port = milvus_lite.start_server_in_thread(str(tmp_path / "m.db"))
    client = MilvusClient(f"http://127.0.0.1:{port}")
    client.create_collection("memfactory", dimension=4)
    client.close()
    server.stop(grace=None).wait()
    database.close()
    with pytest.raises(ConfigError, match=r"'memfactory' in .* holds something else than memories: it has no field .*payload"):
        open_store("milvus", {"uri": str(tmp_path / "m.db")}, embedder=EMBEDDER)


# Where a path is a path, and an address an address.


@pytest.mark.parametrize("uri", ["localhost:9", "127.0.0.1:9", "[::1]:9", "milvus.example.test:9", "http://localhost:9"])
def test_a_host_with_a_port_is_a_server(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("milvus_lite")
    from memfactory.memory.stores.milvus_connection import MilvusConnection

    monkeypatch.chdir(tmp_path)
    made = MilvusConnection(uri, "", "", 1.0, EMBEDDER.embed)
    assert not made.local and made.address == "http://" + uri.removeprefix("http://") and list(tmp_path.iterdir()) == []


def test_a_tilde_is_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("milvus_lite")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    with open_store("milvus", {"uri": "~/m.db"}, embedder=EMBEDDER) as store:
        store.add("alice", ["tea"])
    assert (tmp_path / "home" / "m.db" / "LOCK").is_file() and not (tmp_path / "~").exists()
