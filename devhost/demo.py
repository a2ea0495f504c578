# Long: one scene, from beginning to end.
"""`make demo`: the main job on real input, watched, and every restore point proved equal to the disk at its moment."""

from __future__ import annotations

import itertools
import json
import random
import secrets
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from devhost import disks
from devhost.machines import machine_id
from devhost.platform import DISKS_CONTAINER, EVERY_SECOND, Platform, awaited

if TYPE_CHECKING:
    from azure.storage.blob import BlobClient, BlobServiceClient

SIZE, SIDE_SIZE = 1024 * disks.MIB, 64 * disks.MIB
BUDGET_SECONDS = 180
KIB = 1024
DISK, SIDE, VM = "demo-disk", "demo-blob", "demo-vm"
ACCEPTED = 202


@dataclass(frozen=True)
class Moment:
    """The disk as it was when a backup was taken."""

    name: str
    image: Path
    tree: dict[str, str]
    run: dict[str, Any]


@dataclass
class Guest:
    """A protected disk, and the image that is written to it as a guest would."""

    disk: str
    image: Path
    blob: BlobClient
    """Where its content is: of a managed disk behind its export."""
    moments: list[Moment] = field(default_factory=list)


class Demo:
    """One run of the demo, in a temporary folder."""

    def __init__(self, console: Console, folder: Path, seed: int, telemetry: Path | None = None) -> None:
        """Report to `console`; `seed` decides every byte of the disk; the app's events are written to `telemetry` too."""
        self.console, self.folder, self.rng = console, folder, random.Random(seed)  # noqa: S311  test data
        self.telemetry = telemetry
        self._steps = itertools.count(1)

    def _say(self, what: str) -> None:
        self.console.print(f"[bold]{next(self._steps)}[/] {what}")

    def run(self) -> bool:
        """Run the demo; True when everything it claims was proved."""
        self._say("Starting the local platform: Azurite (completed), the Functions host, function_app.py, a VM stand-in")
        # Windows of a second, fired by hand only: two backups of two windows within a minute.
        with Platform(self.folder, timers="demand", settings={"BACKUP_SCHEDULE": EVERY_SECOND}) as platform:
            self.console.print(
                f"  app at {platform.host.origin}/api, storage at {platform.storage.source.blobs.rpartition('/')[0]}"
            )
            return self._story(platform)

    def _story(self, platform: Platform) -> bool:
        with platform.blobs(platform.storage.source) as client:
            main, side = self._disks(platform, client)
            self._back_up_twice(platform, main, side)
            restored = self._restore(platform, main)
            if restored is None:
                return False
            self._continue(platform, main, side, restored)
            self._watched(platform)
            self._say("Reading every backup snapshot back: bytes, filesystem check, file tree")
            proved = [self._shown(platform, guest) for guest in (main, side)]
            self.console.print("verified: every byte read back and compared, e2fsck -n clean, every file's SHA-256 equal")
            return all(proved)

    def _disks(self, platform: Platform, client: BlobServiceClient) -> tuple[Guest, Guest]:
        """The managed data disk of a running VM; and a page blob, smaller, that no VM uses."""
        content = self.folder / "content"
        content.mkdir()
        disks.file_tree(content, self.rng)
        self._say("Making a 1 GiB managed disk with an ext4 filesystem and 41 files, the data disk of a running VM")
        image = self.folder / "disk.vhd"
        disks.make_vhd(image, SIZE, content)
        put = disks.upload(image, client.get_blob_client(DISKS_CONTAINER, "demo.vhd"))
        managed = platform.managed_disk("demo-data", vhd="demo.vhd", machine=VM)
        self.console.print(f"  {image.stat().st_size:,} bytes long, {put:,} bytes uploaded; VM {VM} has it at LUN 0")
        blob = client.get_blob_client(DISKS_CONTAINER, "beside.vhd")
        disks.make_vhd(self.folder / "beside.vhd", SIDE_SIZE, content)
        disks.upload(self.folder / "beside.vhd", blob)
        self.console.print(f"  and beside it a page blob of {_sized(SIDE_SIZE)} with the same files")
        return Guest(DISK, image, platform.managed_content(managed)), Guest(SIDE, self.folder / "beside.vhd", blob)

    def _back_up_twice(self, platform: Platform, main: Guest, side: Guest) -> None:
        self._say(f"Protecting both by HTTP (PUT /api/disks/{DISK}, /{SIDE}) and firing the timer: full backups")
        machine = {"vm": machine_id(VM), "lun": 0}
        managed = platform.machines.source(VM, 0)
        platform.api("PUT", f"/disks/{DISK}", {"source": managed, "machine": machine}).raise_for_status()
        platform.protect(SIDE, "beside.vhd")
        self._backed_up(platform, "first", main, side)
        self._say("Changing the disks as their guests do: files added, changed, deleted, freed blocks trimmed")
        disks.change(main.image, self.rng, self.folder)
        disks.note(side.image, "written between two backups", self.folder)
        for guest in (main, side):
            self._send(guest)
        self._say("Firing the timer again: incremental backups")
        self._backed_up(platform, "second", main, side)

    def _send(self, guest: Guest) -> None:
        """Write to the disk what its image has changed by since the last backup."""
        sent = disks.replay_changes(guest.moments[-1].image, guest.image, guest.blob)
        self.console.print(f"  {sent.written:,} bytes written, {sent.cleared:,} bytes cleared on {guest.disk}")

    # -- restore ----------------------------------------------------------------------------------------------------

    def _restore(self, platform: Platform, main: Guest) -> dict[str, Any] | None:
        """Restore the first point into the VM; the run, or None when what the VM has then is not the disk of that moment."""
        moment = main.moments[0]
        request = {"restorePoint": moment.run["restorePoints"][0], "target": {"kind": "managedDisk"}, "repoint": True}
        self._say(f"Asking what a restore of the first point would do (POST /api/disks/{DISK}/restores, dryRun)")
        plan = platform.api("POST", f"/disks/{DISK}/restores", {**request, "dryRun": True}).json()
        for number, step in enumerate(plan["steps"], 1):
            self.console.print(f"  {number}. {step}")
        expected = plan["expectedSeconds"]
        self.console.print(
            f"  {_sized(plan['bytesToCopy'])} to copy; {expected['low']} to {expected['high']} s ({expected['basis']})"
        )
        self.console.print(f"  downtime: {plan['downtime']}")
        self._say("Restoring it into the running VM, with the plan's hash")
        answer = platform.api("POST", f"/disks/{DISK}/restores", {**request, "planHash": plan["planHash"]})
        if answer.status_code != ACCEPTED:
            self.console.print(f"  [red]refused: {answer.text}[/]")
            return None
        run = self._follow(platform, answer.json()["id"])
        if run["state"] != "Succeeded":
            return None
        return run if self._vm_has(platform, run["restore"]["managedDisk"], moment) else None

    def _vm_has(self, platform: Platform, disk: str, moment: Moment) -> bool:
        self._say("Looking at the VM and its new disk: bytes, filesystem, files")
        used = platform.machines.source(VM, 0)
        with platform.managed_content(disk) as blob:
            proof = self._compare(blob, moment, moment.image.stat().st_size)
        colour = "green" if (used, proof) == (disk, "equal") else "red"
        self.console.print(f"  VM {VM}, LUN 0: {used}; against the first moment: [{colour}]{proof}[/]")
        return colour == "green"

    def _watched(self, platform: Platform) -> None:
        self._say("Firing the watch: what alerts and the workbook read of the disk")
        platform.host.fire("watch_disks")
        awaited(lambda: [one for one in platform.host.events() if one["event"] == "fleet"], "the watch's line of the fleet")
        events = platform.host.events()
        seen = next(one for one in events if one["event"] == "disk" and one["disk"] == DISK)
        kinds = Counter(one["event"] for one in events)
        self.console.print(
            f"  {seen['disk']} is {seen['protection']}, its newest point {seen['rpo_seconds']} s old, its last backup "
            f"{seen['last_status']}; {kinds['phase']} lines of phases and {kinds['run']} ends of runs were logged before"
        )
        if self.telemetry:
            self.telemetry.write_text("".join(json.dumps(one) + "\n" for one in events))

    def _continue(self, platform: Platform, main: Guest, side: Guest, restored: dict[str, Any]) -> None:
        """The guest writes to the restored disk, the timer fires: an increment. The restore's own point, and that one's."""
        self._say("Writing to the restored disk as its guest, and firing the timer: an incremental backup again")
        first = main.moments[0]
        main.moments.append(Moment("restored", first.image, first.tree, restored))
        main.blob, main.image = platform.managed_content(restored["restore"]["managedDisk"]), self.folder / "going-on.vhd"
        disks.copy_sparse(first.image, main.image)
        disks.note(main.image, "written after the restore", self.folder)
        self._send(main)
        self._backed_up(platform, "third", main, side)

    def _backed_up(self, platform: Platform, name: str, main: Guest, side: Guest) -> None:
        """Fire the timer and wait for the backups of both disks; the one of the managed disk is watched."""
        known = {guest.disk: self._runs(platform, guest) for guest in (main, side)}
        platform.host.fire("scheduled_backup")
        for guest in (main, side):
            kept = self.folder / f"{guest.disk}-{name}.vhd"
            disks.copy_sparse(guest.image, kept)
            run = self._new_run(platform, guest, known[guest.disk])
            ended = self._follow(platform, run) if guest is main else platform.wait(run)
            guest.moments.append(Moment(name, kept, disks.tree_of(kept, self.folder), ended))
        self.console.print(f"  beside it {SIDE}: {ended['kind']}, {_sized(ended['bytesDone'])} copied, {ended['state']}")

    @staticmethod
    def _runs(platform: Platform, guest: Guest) -> set[str]:
        return {str(instance["instanceId"]) for instance in platform.host.instances(f"{guest.disk}.")}

    def _new_run(self, platform: Platform, guest: Guest, known: set[str]) -> str:
        return awaited(lambda: self._runs(platform, guest) - known, f"a run of {guest.disk} started by the timer").pop()

    def _follow(self, platform: Platform, run: str) -> dict[str, Any]:
        columns = (
            TextColumn("  {task.description:<11}"),
            BarColumn(40),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self.console) as bar:
            task = bar.add_task("waiting", total=100)

            def seen(shown: dict[str, Any]) -> None:
                bar.update(task, completed=shown["percent"], description=shown["phase"])

            ended = platform.wait(run, seen=seen)
        if ended["state"] != "Succeeded":
            self.console.print(f"  [red]run {run} ended {ended['state']}: {ended['error']}[/]")
            return ended
        self.console.print(f"  {_way(ended)}")
        if ended["restore"]:
            self.console.print(f"  {ended['restore']['endState']}")
            for step in ended["restore"]["nextSteps"]:
                self.console.print(f"  {step}", style="dim", markup=False)
        return ended

    # -- proof ------------------------------------------------------------------------------------------------------

    def _shown(self, platform: Platform, guest: Guest) -> bool:
        """Show the disk's restore points, each compared with its moment; whether all are equal."""
        proofs = self._prove(platform, guest)
        self._show(platform, guest, proofs)
        return all(proof == "equal" for proof in proofs.values()) and len(proofs) == len(guest.moments)

    def _prove(self, platform: Platform, guest: Guest) -> dict[str, str]:
        points = {point["run"]: point for point in platform.points(guest.disk)}
        proofs = {}
        with platform.blobs(platform.storage.backup) as client:
            for moment in guest.moments:
                point = points.get(moment.run["id"])
                if point is None:
                    proofs[moment.run["id"]] = "no restore point"
                    continue
                snapshot = client.get_blob_client("heads", point["blob"], snapshot=point["snapshot"])
                proofs[moment.run["id"]] = self._compare(snapshot, moment, point["logicalBytes"])
        return proofs

    def _compare(self, snapshot: BlobClient, moment: Moment, size: int) -> str:
        restored = self.folder / "restored.vhd"
        disks.download(snapshot, size, restored)
        difference = disks.first_difference(restored, moment.image)
        if difference is not None:
            return f"differs at byte {difference:,}"
        try:
            disks.check_filesystem(restored)
        except disks.DiskDamagedError as error:
            return f"filesystem damaged: {error}"
        return "equal" if disks.tree_of(restored, self.folder) == moment.tree else "file tree differs"

    def _show(self, platform: Platform, guest: Guest, proofs: dict[str, str]) -> None:
        points = {point["run"]: point for point in platform.points(guest.disk)}
        table = Table(
            title=f"Restore points of {guest.disk}", title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0)
        )
        for name in ("point", "kind"):
            table.add_column(name, no_wrap=True)
        for name in ("size", "changed", "cleared", "requests", "seconds"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("verified", no_wrap=True)
        for moment in guest.moments:
            point, proof = points.get(moment.run["id"]), proofs[moment.run["id"]]
            if point is None:
                continue
            took = datetime.fromisoformat(moment.run["ended"]) - datetime.fromisoformat(moment.run["started"])
            sizes = [_sized(point[key]) for key in ("logicalBytes", "changedBytes", "clearedBytes")]
            colour = "green" if proof == "equal" else "red"
            table.add_row(
                point["id"],
                point["kind"],
                *sizes,
                str(point["requests"]),
                f"{took.total_seconds():.1f}",
                f"[{colour}]{proof}[/]",
            )
        self.console.print(table)


def main(telemetry: Path | None = None) -> int:
    """Run the demo in a temporary folder; 0 only when every restore point was proved."""
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 100  # a log has no edge
    began, seed = time.monotonic(), secrets.randbelow(10**6)
    try:
        disks.require_tools()
    except disks.DiskToolsMissingError as error:
        console.print(f"[red]demo: {error}[/]")
        return 1
    with tempfile.TemporaryDirectory(prefix="pagekeeper-demo-") as folder:
        try:
            proved = Demo(console, Path(folder), seed, telemetry).run()
        except BaseException:
            _show_log(console, Path(folder))
            raise
        if not proved:
            _show_log(console, Path(folder))
    took = time.monotonic() - began
    console.print(
        f"{took:.0f} s in all (budget from a warm install: about {BUDGET_SECONDS} s), seed {seed}; nothing is left running"
    )
    if proved:
        console.print("[green]Every restore point equals the disk at its moment, and so did the restored disk.[/]")
        return 0
    console.print("[red]A restore point or the restored disk is missing or differs: see above, and the log.[/]")
    return 1


def _way(run: dict[str, Any]) -> str:
    """The route of a run's bytes."""
    copied, streamed = run["bytesDone"], run["bytesStreamed"]
    if streamed:
        return f"stream mode: {_sized(streamed)} of {_sized(copied)} copied passed through the worker"
    fetcher = "new disk" if run["operation"] == "restore" else "backup account"
    return f"server mode: the {fetcher} fetched {_sized(copied)} itself; 0 bytes copied passed through the worker"


def _sized(count: int) -> str:
    """Bytes for people."""
    if count < KIB:
        return f"{count} B"
    size, unit = float(count), "B"
    for unit in ("KiB", "MiB", "GiB"):  # noqa: B007  the last unit reached is the one shown
        size /= KIB
        if size < KIB:
            break
    return f"{size:.1f} {unit}"


def _show_log(console: Console, folder: Path) -> None:
    log = folder / "host" / "host.log"
    if log.exists():
        console.print("[dim]the end of the host's log:[/]")
        console.print("\n".join(log.read_text().splitlines()[-30:]), markup=False)
