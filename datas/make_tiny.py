#!/usr/bin/env python3
"""Write `datas/tiny/` (questions over facts, for MemAgent) and `datas/tiny_bank/` (dialogues, for Memory-R1). Seeded, seconds.

python datas/make_tiny.py --output datas
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from memfactory.common.files import write_text
from memfactory.data.generators.synth_dialog import synth_dialog
from memfactory.data.generators.synth_facts import synth_facts

SETS = {
    "train": {"num_examples": 3072, "seed": 1, "chunks": (2, 3, 4), "names": "train"},
    "dev": {"num_examples": 64, "seed": 6, "chunks": (2, 3, 4), "names": "train"},
    "eval": {"num_examples": 160, "seed": 2, "chunks": (2, 3, 4), "names": "train"},
    "eval_8chunks": {"num_examples": 160, "seed": 3, "chunks": (8,), "names": "train"},
    "eval_16chunks": {"num_examples": 160, "seed": 4, "chunks": (16,), "names": "train"},
    "eval_newnames": {"num_examples": 160, "seed": 5, "chunks": (2, 3, 4), "names": "new"},
}
DIALOGUES = {
    "train": {"num_examples": 1024, "seed": 1, "sessions": (2, 3, 4), "names": "train"},
    "dev": {"num_examples": 32, "seed": 6, "sessions": (2, 3, 4), "names": "train"},
    "eval": {"num_examples": 128, "seed": 2, "sessions": (4,), "names": "train"},
    "eval_8sessions": {"num_examples": 128, "seed": 3, "sessions": (8,), "names": "train"},
    "eval_newnames": {"num_examples": 128, "seed": 5, "sessions": (4,), "names": "new"},
}


def write(path: Path, rows: list[dict]) -> None:
    write_text(path, "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    print(f"{path}: {len(rows)} examples")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("datas"))
    args = parser.parse_args()
    for name, options in SETS.items():
        write(args.output / "tiny" / f"{name}.json", synth_facts(**options))
    for name, options in DIALOGUES.items():
        made = synth_dialog(**options, rendering="triples")
        write(args.output / "tiny_bank" / f"{name}.json", [{key: row[key] for key in row if key != "gold"} for row in made])


if __name__ == "__main__":
    main()
