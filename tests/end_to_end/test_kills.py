"""kill -9 of the host in the middle of a backup: after the restart, exactly one new point, equal to the disk."""

from __future__ import annotations

import time

from devhost.platform import EVERY_SECOND, Platform
from tests.conftest import SEED
from tests.disk import Disk

MIB = 1024 * 1024
KILLS = 20


def puts(storage):
    counts = storage.counts()
    return sum(counts.get(verb, {}).get("requests", 0) for verb in ("PUT page-from-url", "PUT clear"))


def test_twenty_kills_at_seeded_offsets(calm, tmp_path, rng):
    """Each time: some puts were accepted, the host dies, comes back, and the run ends with one point, byte for byte."""
    settings = {"BACKUP_SCHEDULE": EVERY_SECOND, "CATALOGUE_TABLE": "kills", "IN_FLIGHT": "2", "WAVE_SHARDS": "2"}
    with Platform(tmp_path, storage=calm, settings=settings) as platform:
        disk = Disk(platform, "killed", 24 * MIB).protect()
        disk.disturb(rng, 10)
        disk.back_up()
        for kill in range(KILLS):
            disk.disturb(rng, 4)
            for start in range(12):
                disk.write(start * 2 * MIB, rng.randbytes(MIB))
            known = {point["id"] for point in disk.points()}
            content = bytes(disk.content)
            calm.reset()
            # Slow enough that a kill falls into the copying, fast enough for twenty.
            calm.faults({"verb": "PUT page-from-url", "delayMs": 15, "times": 1000})
            run = platform.api("POST", f"/disks/{disk.name}/backups").json()["id"]
            while puts(calm) < 1:
                time.sleep(0.005)
            offset = rng.uniform(0.0, 0.35)
            time.sleep(offset)  # the offset is the experiment
            platform.host.kill()
            platform.host.start()
            ended = platform.wait(run)

            assert ended["state"] == "Succeeded", f"seed {SEED}, kill {kill} at {offset}: {ended}"
            (fresh,) = {point["id"] for point in disk.points()} - known
            disk.moments[fresh] = content
        calm.reset()
        disk.check_every_point()
        assert len(disk.moments) == KILLS + 1
        disk.service.close()
