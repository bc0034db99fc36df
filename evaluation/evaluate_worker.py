#!/usr/bin/env python3
"""One job of an evaluation in this process: `python evaluation/evaluate_worker.py output/evaluation/MODEL/DATASET/asked.json`."""

from __future__ import annotations

import sys

from memfactory.evaluation.worker import main

if __name__ == "__main__":
    sys.exit(main())
