"""`python -m bench [--short]`; the short form leaves out how near the limits are reached, and writes no page."""

from __future__ import annotations

import sys

from bench import limits, measurements

if __name__ == "__main__":
    short = "--short" in sys.argv[1:]
    missed = measurements.main(short=short)
    sys.exit(missed or (0 if short else limits.main()))
