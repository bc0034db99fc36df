#!/usr/bin/env python3
"""The stores at 10,000 memories of one user: writing, searching, recall against exact search, opening again, room on the disk.

    OMP_NUM_THREADS=1 python benchmarks/stores.py
    OMP_NUM_THREADS=1 python benchmarks/stores.py --stores milvus --options '{"uri": "http://localhost:19530", "index": "HNSW"}'

Texts are sentences of a small world, drawn with a seed; queries are questions about them. Embedding is not timed (vectors are
made beforehand and looked up). A hit counts if its cosine reaches that of the exact tenth: equal ones are as good. A store that
cannot be opened here is named and left out.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from memfactory.common.errors import MemFactoryError
from memfactory.memory.embedders import CachedEmbedder, HashedEmbedder
from memfactory.memory.stores import MemoryStore, open_store

PLACES: dict[str, dict[str, str]] = {
    "in_memory": {},
    "milvus": {"uri": "milvus.db"},
    "milvus, HNSW": {"uri": "hnsw.db", "index": "HNSW"},
    "neo4j": {"path": "graph"},
    "hybrid": {"path": "hybrid"},
}
"""Options of the stores that keep their memories in a folder: the value of `uri` or `path` is put into it."""
K = 10


def sentences(count: int, seed: int) -> tuple[list[str], list[str]]:
    """Memories, and as many questions about them."""
    rng = random.Random(seed)
    people = [f"{a}{b}" for a in ("Al", "Be", "Ca", "Do", "El", "Fi", "Gre", "Ha") for b in ("ice", "rta", "rlos", "mma", "nor", "lip")]
    places = "Oslo Lisbon Rome Quito Kyoto Leeds Turin Accra Hanoi Perth Bergen Lima Tunis Porto Ghent Cork".split()
    things = "cello bakery garden bicycle novel telescope kayak piano greenhouse library camera orchard".split()
    acts = "bought repaired lost painted inherited sold rented borrowed photographed described".split()
    memories, questions = [], []
    for _ in range(count):
        person, act, thing, place = (rng.choice(words) for words in (people, acts, things, places))
        memories.append(f"{person} {act} a {thing} in {place} on day {rng.randrange(3650)}.")
        questions.append(f"When was it that {person} {act} the {thing} in {place}?")
    return memories, questions


def measure(store: MemoryStore, memories: list[str], queries: list[str], batch: int, singles: int) -> dict[str, float]:
    """Rates of writing and times of searching."""
    start = time.perf_counter()
    for at in range(0, len(memories) - singles, batch):
        store.add("alice", memories[at : min(at + batch, len(memories) - singles)])
    bulk = time.perf_counter() - start
    start = time.perf_counter()
    for text in memories[len(memories) - singles :]:
        store.add("alice", [text])
    single = time.perf_counter() - start
    store.search("alice", queries[0], K)
    times, recalls = [], []
    texts = [item.text for item in store.list("alice")]
    vectors = store.embedder.embed(texts).astype(np.float64)
    for query in track(queries, description="searching", transient=True):
        start = time.perf_counter()
        hits = store.search("alice", query, K)
        times.append(time.perf_counter() - start)
        scores = np.sort(vectors @ store.embedder.embed([query])[0])[::-1]
        recalls.append(sum(score >= scores[K - 1] - 2e-6 for _, score in hits) / K)
    return {
        "bulk": (len(memories) - singles) / bulk, "single": singles / single, "p50": statistics.median(times) * 1e3,
        "p95": float(np.quantile(times, 0.95)) * 1e3, "recall": statistics.mean(recalls),
    }  # fmt: skip


def row_of(name: str, options: dict[str, Any], arguments: argparse.Namespace, folder: Path, embedder: CachedEmbedder) -> list[str]:
    """A store's row of the table; what it kept is purged."""
    memories, questions = sentences(arguments.memories, arguments.seed)
    queries = random.Random(arguments.seed).sample(questions, min(arguments.queries, len(questions)))
    embedder.embed(memories + queries)
    kind = name.split(",")[0]
    with open_store(kind, options, embedder=embedder) as store:
        found = measure(store, memories, queries, arguments.batch, min(arguments.singles, len(memories) // 2))
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    start = time.perf_counter()
    with open_store(kind, options, embedder=embedder) as store:
        kept = store.count("alice")
        store.search("alice", queries[0], K)
        again = time.perf_counter() - start
        store.purge("alice")
    cells = [f"{found['bulk']:,.0f}", f"{found['single']:,.0f}", f"{found['p50']:.1f}", f"{found['p95']:.1f}", f"{found['recall']:.3f}"]
    return [name, *cells, f"{again:.1f}" if kept else "-", f"{size / 2**20:.0f}" if size else "-"]


def main() -> None:
    """Print a Markdown table, a row a store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stores", nargs="+", default=list(PLACES), help=f"of: {', '.join(PLACES)}")
    parser.add_argument("--options", type=json.loads, help="JSON; the stores' options instead of a temporary folder")
    parser.add_argument("--memories", type=int, default=10_000)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--batch", type=int, default=100, help="memories of one add, but for the last --singles")
    parser.add_argument("--singles", type=int, default=200, help="memories that are added one by one")
    parser.add_argument("--dim", type=int, default=2048, help="of the hashed embedder")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    console = Console()
    rows = []
    for name in arguments.stores:
        embedder = CachedEmbedder(HashedEmbedder(dim=arguments.dim), max_entries=3 * arguments.memories)
        with tempfile.TemporaryDirectory() as folder:
            options = arguments.options or {
                key: str(Path(folder) / value) if key != "index" else value for key, value in PLACES[name].items()
            }
            try:
                rows.append(row_of(name, options, arguments, Path(folder), embedder))
            except MemFactoryError as error:
                console.print(f"{name} is left out: {error}", markup=False)
    head = [
        "store",
        f"adds of {arguments.batch}, /s",
        "one by one, /s",
        "search p50, ms",
        "p95, ms",
        f"recall@{K}",
        "open again, s",
        "disk, MiB",
    ]
    for line in (head, ["---"] * len(head), *rows):
        print(f"| {' | '.join(line)} |")


if __name__ == "__main__":
    main()
