"""`make fleet`: how well windows of many disks use the backup accounts, in simulated time, by the project's own scheduling.

A disk copies at the limits of a page blob, and all disks of one account together at its limits: the pacers of the data path
reach both. `docs/performance.md` gets the section, `docs/pictures/fleet.png` the picture.
"""

from __future__ import annotations

import heapq
import random
import sys
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from backup_core.domain.fleet import ACTIVE_DISKS, Candidate, Turns, expected_seconds, in_order, lanes_for
from backup_core.domain.naming import timer_run_id
from backup_core.domain.pacing import ACCOUNT_RATES, BLOB_RATES
from backup_core.domain.ranges import GIB, MIB
from backup_core.domain.records import Run
from bench.page import PAGE, Section, table, verdict, words
from bench.png import Curve, drawn

SEED = 20261128
PICTURE = PAGE.parent / "pictures" / "fleet.png"
TITLE = "Fleet"
GOAL = 1.10
NOW = datetime(2026, 11, 28, tzinfo=UTC)
STEPS_SECONDS = 10.0
"""Of each run: its steps besides the copying, in which no page is sent."""
LONG_STEPS_SECONDS = 30.0
"""To compare."""
SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
"""GiB."""
CASES = ((1, 1), (100, 1), (100, 4), (10_000, 1), (10_000, 4))
"""Disks, and the accounts they are spread over; each account is an app's own."""


@dataclass(frozen=True, slots=True)
class Disk:
    """One disk: the bytes and requests of its next backup, and its past runs."""

    name: str
    bytes: float
    requests: float
    past: tuple[Run, ...]

    @property
    def copying(self) -> float:
        """Seconds at the limits of a page blob."""
        return max(self.bytes / BLOB_RATES.bytes, self.requests / BLOB_RATES.requests)


@dataclass(frozen=True, slots=True)
class Moment:
    """From when on how many disks are at work, and what they send a second."""

    at: float
    active: int
    bytes: float
    requests: float


@dataclass(frozen=True)
class Played:
    """A window, from its beginning to its end."""

    ends: tuple[float, ...]
    """When each disk was done, ascending."""
    moments: tuple[Moment, ...]


def fleet(count: int, seed: int = SEED) -> list[Disk]:
    """So many disks: most are small and little changed, a few are neither."""
    rng = random.Random(seed)  # noqa: S311  draws disks, guards nothing
    found = []
    for number in range(count):
        size = rng.choices(SIZES, weights=(8, 12, 20, 20, 16, 12, 8, 4))[0] * GIB
        copied = size * min(rng.lognormvariate(-5.0, 0.8), 0.05)
        disk = Disk(f"disk{number:05}", copied, copied / 2 ** rng.uniform(15, 19), ())
        runs = []
        for day in range(1, 6):
            began = NOW - timedelta(days=day)
            took = timedelta(seconds=STEPS_SECONDS + disk.copying * rng.lognormvariate(0.0, 0.4))
            run = timer_run_id(disk.name, began)
            runs.append(
                Run(
                    disk.name, run, "Succeeded", "timer", full=False, created=began, started=began, ended=began + took,
                    kind="incremental",
                )
            )  # fmt: skip
        found.append(Disk(disk.name, disk.bytes, disk.requests, tuple(runs)))
    return found


def least(disks: Sequence[Disk]) -> float:
    """Seconds below which no window of the disks of one account can be: its slowest disk, its bytes, its requests."""
    return max(
        STEPS_SECONDS + max(one.copying for one in disks),
        sum(one.bytes for one in disks) / ACCOUNT_RATES.bytes,
        sum(one.requests for one in disks) / ACCOUNT_RATES.requests,
    )


def ordered(disks: Sequence[Disk]) -> list[Disk]:
    """The disks in the order in which a window begins them."""
    by_name = {one.name: one for one in disks}
    return [by_name[name] for name in in_order(Candidate(one.name, expected_seconds(one.past)) for one in disks)]


def played(order: Sequence[Disk], active: int = ACTIVE_DISKS, steps: float = STEPS_SECONDS) -> Played:
    """The window of an account: its lanes take the disks in that order. Where the account is the limit, all are slower by the
    same factor, since its pacer admits their requests one after another.
    """
    turns = Turns.first("window", "", len(order), lanes_for(len(order), 0, active), NOW)
    now, copied = 0.0, 0.0  # the second counts the seconds that those copying would have taken alone
    preparing = [(steps, lane) for lane in range(len(turns.lanes))]
    at_work: list[tuple[float, int]] = []
    bytes_, requests, ends, moments = 0.0, 0.0, list[float](), list[Moment]()
    while preparing or at_work:
        share = 1 / max(1.0, bytes_ / ACCOUNT_RATES.bytes, requests / ACCOUNT_RATES.requests)
        moments.append(Moment(now, len(preparing) + len(at_work), bytes_ * share, requests * share))
        done = now + (at_work[0][0] - copied) / share if at_work else float("inf")
        begins = bool(preparing) and preparing[0][0] <= done
        then = preparing[0][0] if begins else done
        copied, now = copied + (then - now) * share, then
        _, lane = heapq.heappop(preparing if begins else at_work)
        disk = order[turns.lanes[lane].place]
        sign = 1 if begins else -1
        bytes_ += sign * disk.bytes / disk.copying
        requests += sign * disk.requests / disk.copying
        if begins:
            heapq.heappush(at_work, (copied + disk.copying, lane))
            continue
        ends.append(now)
        turns, turn = turns.given(lane, turns.lanes[lane].number + 1, NOW)
        if turn:
            heapq.heappush(preparing, (now + steps, lane))
    return Played(tuple(ends), (*moments, Moment(now, 0, 0.0, 0.0)))


@dataclass(frozen=True)
class Figures:
    """The result of one case, in seconds."""

    disks: int
    accounts: int
    least: float
    took: float
    first: float
    """When the first disk was done."""

    @property
    def ratio(self) -> float:
        """Of what it took and what it must take."""
        return self.took / self.least


def figures(
    count: int, accounts: int, active: int = ACTIVE_DISKS, *, by_name: bool = False, steps: float = STEPS_SECONDS
) -> Figures:
    """The case, played; to compare, by name, or with more active disks or longer steps."""
    disks = fleet(count)
    shares = [disks[number::accounts] for number in range(accounts)]
    windows = [played(share if by_name else ordered(share), active, steps) for share in shares]
    took, first = max(one.ends[-1] for one in windows), min(one.ends[0] for one in windows)
    return Figures(count, accounts, max(map(least, shares)), took, first)


def picture(window: Played, points: int = 720) -> bytes:
    """A window of one account over its time: disks at work, MiB/s and requests/s, with the account's limits."""
    times, until = [one.at for one in window.moments], window.ends[-1]
    shown = [window.moments[bisect_right(times, until * n / points) - 1] for n in range(points)]
    return drawn(
        [
            Curve("active disks", [one.active for one in shown]),
            Curve("MiB/s", [one.bytes / MIB for one in shown], ACCOUNT_RATES.bytes / MIB),
            Curve("requests/s", [one.requests for one in shown], ACCOUNT_RATES.requests),
        ],
        f"{until / 60:,.0f} min",
    )


def section(cases: Sequence[Figures], others: Sequence[tuple[str, Figures]]) -> Section:
    """The section that compares windows with the shortest time possible."""
    how = f"""
        Written by `make fleet`, in simulated time: seeded disks of 32 GiB to 4 TiB, of which a window copies some 0.7 % in
        pieces of 32 to 512 KiB; five past runs of each, most of which took up to 1.5 times as long or as short; the order and
        the turns of `domain/fleet.py`, {ACTIVE_DISKS} disks side by side in each account. A disk copies at a page blob's limits
        and an account takes its own, as the pacers know them; {STEPS_SECONDS:g} s of each run, an assumption, copy nothing.
        Workers are as many as are needed. The lower bound is the slowest disk, or an account's bytes or requests at its limits,
        whichever takes longest. Several accounts are several apps: each has one backup account.
        """
    ratios = table(
        ("disks", "accounts", "lower bound", "makespan", "÷", f"goal, at most {GOAL:.2f}"),
        [
            (
                f"{one.disks:,}", f"{one.accounts}", _minutes(one.least), _minutes(one.took), f"{one.ratio:.2f}",
                verdict(met=one.ratio <= GOAL),
            )
            for one in cases
        ],
    )  # fmt: skip
    compared = table(
        ("10,000 disks, one account", "makespan", "÷", "first disk done"),
        [(name, _minutes(one.took), f"{one.ratio:.2f}", _minutes(one.first)) for name, one in others],
    )
    after = """
        Longest first has the first restore point later than the order of names has it: that is the price of the end. The more
        of a run's time copies nothing, the further its window stays from the bound, which knows of copying alone.
        """
    shown = f"![Active disks, MiB/s and requests/s of a window of 100 disks](pictures/{PICTURE.name})"
    caption = "A window of 100 disks of one account; dashed are the account's limits."
    text = "\n\n".join([words(how), ratios, words(after), compared, caption, shown])
    return Section(TITLE, text, all(one.ratio <= GOAL for one in cases))


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:,.1f} min"


def placed(page: str, one: Section) -> str:
    """The page with that section in the place of its former one, or at the end."""
    before, _, rest = page.partition(f"## {one.title}\n")
    _, following, after = rest.partition("\n## ")
    return f"{before.rstrip()}\n\n## {one.title}\n\n{one.text}\n" + (f"\n## {after}" if following else "")


def measured() -> tuple[list[Figures], list[tuple[str, Figures]]]:
    """Every case, and what the largest would come to otherwise."""
    largest = (10_000, 1)
    others = [
        (f"longest first, {ACTIVE_DISKS} side by side", figures(*largest)),
        (f"the same, each run with {LONG_STEPS_SECONDS:g} s that copy nothing", figures(*largest, steps=LONG_STEPS_SECONDS)),
        (f"by name, {ACTIVE_DISKS} side by side", figures(*largest, by_name=True)),
        ("longest first, 16 side by side", figures(*largest, active=16)),
        ("all at once", figures(*largest, active=largest[0])),
    ]
    return [figures(*case) for case in CASES], others


def measure() -> Section:
    """Play all, and draw the picture."""
    PICTURE.write_bytes(picture(played(ordered(fleet(100)))))
    return section(*measured())


def main() -> int:
    """Show and write the section; 0 when every figure is at its goal."""
    one = measure()
    PAGE.write_text(placed(PAGE.read_text(), one))
    print(one.text)
    return 0 if one.met else 1


if __name__ == "__main__":
    sys.exit(main())
