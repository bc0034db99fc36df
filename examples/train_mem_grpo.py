#!/usr/bin/env python3
"""Train an agent by GRPO with the flags of the public launchers: `memfactory train` under its published name."""

from __future__ import annotations

import sys

from memfactory.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
