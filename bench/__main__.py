"""`python -m bench [--short]`; the short form counts requests and bytes alone, once, and writes no page."""

from __future__ import annotations

import sys

from bench import fleet, gaps, idle, limits, listing, measurements, worker
from bench.page import PAGE, page


def main(*, short: bool) -> int:
    """Measure; 0 when every figure is at its goal."""
    sections = [measurements.measure(short=short)]
    if not short:
        for measure in (limits.measure, gaps.measure, worker.measure, listing.measure, idle.measure, fleet.measure):
            sections.append(measure())
            print(sections[-1].text, flush=True)
        PAGE.write_text(page([*sections[1:], sections[0]]))
    return int(not all(one.met for one in sections))


if __name__ == "__main__":
    sys.exit(main(short="--short" in sys.argv[1:]))
