"""`python -m bench [--short]`."""

from __future__ import annotations

import sys

from bench.measurements import main

if __name__ == "__main__":
    sys.exit(main(short="--short" in sys.argv[1:]))
