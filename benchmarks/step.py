#!/usr/bin/env python3
"""Whole training steps (rollout, reward, update), per sampled token: ours beside TRL's `GRPOTrainer` and the public MemFactory.

What is equal for all, and what is not, stands in arms.py; what is changed of the public code, in public_code.py.

    OMP_NUM_THREADS=1 python benchmarks/step.py --public /path/to/public/MemFactory
"""

from side_by_side import main

if __name__ == "__main__":
    main("step", "Whole step, one thread")
