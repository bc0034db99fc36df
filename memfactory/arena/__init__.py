"""Several agents trained and scored on the same dialogues by the same reader, in one table: `examples/arena.sh`."""
