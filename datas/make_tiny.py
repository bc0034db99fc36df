#!/usr/bin/env python3
"""Write `datas/tiny/`: training and held-out questions of `synth_facts` in the public long-context schema. Seeded, seconds.

python datas/make_tiny.py --output datas/tiny
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from memfactory.common.files import write_text
from memfactory.data.generators.synth_facts import synth_facts

SETS = {
    "train": {"num_examples": 3072, "seed": 1, "chunks": (2, 3, 4), "names": "train"},
    "dev": {"num_examples": 64, "seed": 6, "chunks": (2, 3, 4), "names": "train"},
    "eval": {"num_examples": 160, "seed": 2, "chunks": (2, 3, 4), "names": "train"},
    "eval_8chunks": {"num_examples": 160, "seed": 3, "chunks": (8,), "names": "train"},
    "eval_16chunks": {"num_examples": 160, "seed": 4, "chunks": (16,), "names": "train"},
    "eval_newnames": {"num_examples": 160, "seed": 5, "chunks": (2, 3, 4), "names": "new"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("datas/tiny"))
    args = parser.parse_args()
    for name, options in SETS.items():
        rows = synth_facts(**options)
        write_text(args.output / f"{name}.json", "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
        print(f"{args.output / name}.json: {len(rows)} examples")


if __name__ == "__main__":
    main()
