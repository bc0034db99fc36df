#!/usr/bin/env python3
"""Sampling alone, per sampled token: ours beside TRL's `GRPOTrainer` and the public MemFactory. What is equal: arms.py.

OMP_NUM_THREADS=1 python benchmarks/rollout.py --public /path/to/public/MemFactory
"""

from side_by_side import main

if __name__ == "__main__":
    main("rollout", "Sampling, one thread")
