"""`make simulate`: many histories on all cores, or one with its trace."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import sys
import time
import warnings
from collections import Counter
from typing import TYPE_CHECKING

from tests.simulator.simulation import simulate
from tests.simulator.stage import Report

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


def histories(seeds: Iterable[int], processes: int | None = None) -> Iterator[Report]:
    """The reports of all seeds, in any order."""
    with multiprocessing.get_context("spawn").Pool(processes or os.cpu_count(), quiet) as pool:
        yield from pool.imap_unordered(simulate, seeds, chunksize=20)


def quiet() -> None:
    """Log nothing, and collect garbage seldom, in this process."""
    # The product logs each injected fault; the report counts them.
    logging.disable(logging.CRITICAL)
    # Little of what a history makes are cycles, and looking for them in all that was imported takes time.
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    warnings.simplefilter("ignore")


def summary(counts: Counter[str], made: int, seconds: float) -> str:
    """The counts in words."""
    crashes = sum(number for name, number in counts.items() if "crash" in name or "zombie" in name or "terminated" in name)
    injected = ("unavailable", "refused", "unknown", "duplicate", "timer", "a diff", "third party")
    faults = sum(number for name, number in counts.items() if name.startswith(injected))
    lines = [f"{made:,} histories in {seconds:.0f} s: {counts['runs']:,} runs, {counts['points']:,} restore points,"]
    lines.append(f"{crashes:,} crashes, {faults:,} other faults:")
    lines += [f"  {number:>9,}  {name}" for name, number in sorted(counts.items()) if name not in ("runs", "points")]
    return "\n".join(lines)


def main(seeds: int, first: int, one: int | None) -> int:
    """Simulate; 0 when no invariant was violated."""
    quiet()
    if one is not None:
        report = simulate(one, keep_trace=True)
        print("\n".join(report.trace))
        print(f"seed {one}: {report.violation or 'no violation'}")
        return 1 if report.violation else 0
    began, counts, made, violations = time.monotonic(), Counter[str](), 0, list[Report]()
    print(f"seeds {first} to {first + seeds - 1}", flush=True)
    for report in histories(range(first, first + seeds)):
        made += 1
        counts.update(report.counts)
        if report.violation:
            violations.append(report)
            print(f"VIOLATION seed {report.seed}: {report.violation}; `make simulate SEED={report.seed}` shows it", flush=True)
        if made % 5000 == 0:
            print(f"  {made:,} histories, {len(violations)} violations", file=sys.stderr, flush=True)
    print(summary(counts, made, time.monotonic() - began))
    print(f"{len(violations)} violations")
    return 1 if violations else 0
