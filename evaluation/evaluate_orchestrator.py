#!/usr/bin/env python3
"""Models x data sets over the GPUs or CPU processes given: `memfactory eval` under its published name.

python evaluation/evaluate_orchestrator.py                                        the published models and sets that lie here
python evaluation/evaluate_orchestrator.py --models models/tiny --datasets datas/tiny/eval.json --k 4
"""

from __future__ import annotations

import sys

from memfactory.cli import main

if __name__ == "__main__":
    sys.exit(main(["eval", *sys.argv[1:]]))
