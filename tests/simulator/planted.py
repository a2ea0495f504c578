"""All planted bugs, and which histories can show each.

`python -m tests.simulator.planted` finds a history for each anew, and writes the seeds to caught_by.json.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from tests.simulator import simulation
from tests.simulator.bugs import BACKUP_BUGS, RESTORE_BUGS
from tests.simulator.command import quiet
from tests.simulator.episode_bugs import EPISODE_BUGS
from tests.simulator.managed_bugs import MANAGED_BUGS
from tests.simulator.stage import (
    BACKUPS_ONLY_EVERY,
    GENTLE,
    GENTLE_EVERY,
    MANAGED,
    MANAGED_EVERY,
    REPEATS,
    REPEATS_EVERY,
    REPLAYED_EVERY,
)
from tests.simulator.trouble_bugs import TROUBLE_BUGS, TroubleBug

SEEDS = range(50_501, 62_501)
"""Any stretch would do; in this one the rarest bugs are met soon."""
KNOWN = Path(__file__).with_name("caught_by.json")
"""The seed that showed each bug last. It is tried first: a change of the product may have made another history of it."""
FAILS_GOOD_RUNS = {"refused versions are not looked into", "cursor ahead of its puts"}
"""Bugs that show by a run that fails without a reason; every other bug has to do harm."""


@dataclass(frozen=True)
class PlantedBug:
    """A planted bug, and whether the history of a seed can show it."""

    plant: Callable[[], AbstractContextManager[object]]
    shows: Callable[[int], bool]

    def seeds(self) -> list[int]:
        """The seeds to try. The Durable SDK's replay shows nothing more, and takes long."""
        return [seed for seed in SEEDS if seed % REPLAYED_EVERY and self.shows(seed)]


@dataclass(frozen=True)
class Caught:
    """A history that shows a planted bug."""

    seed: int
    violation: str
    without: str
    """The violation of the same history without the bug: none, or the bug is not what was caught."""


def _is_gentle(seed: int) -> bool:
    return seed % GENTLE_EVERY == GENTLE


def _has_trouble(bug: TroubleBug) -> Callable[[int], bool]:
    return lambda seed: seed % bug.every == bug.at


def _suits(name: str) -> Callable[[int], bool]:
    backups_only, gentle_too = name in BACKUP_BUGS, name in FAILS_GOOD_RUNS
    return lambda seed: (seed % BACKUPS_ONLY_EVERY == 0) == backups_only and (gentle_too or not _is_gentle(seed))


PLANTED = {
    **{name: PlantedBug(plant, _suits(name)) for name, plant in (BACKUP_BUGS | RESTORE_BUGS).items()},
    **{name: PlantedBug(bug.bug, _has_trouble(bug)) for name, bug in TROUBLE_BUGS.items()},
    **{name: PlantedBug(plant, lambda seed: seed % MANAGED_EVERY in MANAGED) for name, plant in MANAGED_BUGS.items()},
    **{
        name: PlantedBug(plant, lambda seed: _is_gentle(seed) and seed % REPEATS_EVERY < REPEATS)
        for name, plant in EPISODE_BUGS.items()
    },
}


def known() -> dict[str, int]:
    """The seed that is known to show each bug."""
    found: dict[str, int] = json.loads(KNOWN.read_text())
    return found


def catch(name: str, first: int | None = None) -> Caught | None:
    """The first history that shows the bug, beginning with that of the seed `first`; None when none of them does."""
    bug = PLANTED[name]
    with bug.plant():
        steps = simulation.STEPS_PER_HISTORY
        for seed in [*([] if first is None else [first]), *bug.seeds()]:
            if violation := simulation.simulate(seed).violation:
                break
        else:
            return None
    # Some bugs make histories longer.
    with patch.object(simulation, "STEPS_PER_HISTORY", steps):
        return Caught(seed, violation, simulation.simulate(seed).violation)


def main() -> int:
    """Find a history for each bug, and write their seeds; 1 when there is none for one."""
    with multiprocessing.get_context("spawn").Pool(os.cpu_count(), quiet) as pool:
        found = dict(zip(PLANTED, pool.map(catch, PLANTED, chunksize=1), strict=True))
    KNOWN.write_text(json.dumps({name: caught.seed for name, caught in sorted(found.items()) if caught}, indent=2) + "\n")
    missed = [name for name, caught in found.items() if caught is None]
    print(f"{len(PLANTED)} planted bugs, {len(PLANTED) - len(missed)} caught: {KNOWN.name} is written")
    for name in missed:
        print(f"NOT CAUGHT in {len(PLANTED[name].seeds())} histories: {name}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
