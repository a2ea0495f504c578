"""`python -m tests.simulator [--seeds N] [--first N] [--seed N]`."""

from __future__ import annotations

import argparse
import sys

from tests.simulator.command import main

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="simulator")
    parser.add_argument("--seeds", type=int, default=5000, help="how many histories")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="one history, with its trace")
    request = parser.parse_args()
    sys.exit(main(request.seeds, request.first, request.seed))
