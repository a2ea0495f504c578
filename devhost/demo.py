"""`make demo`: the main job on real input, watched, and every restore point proved equal to the disk at its moment."""

from __future__ import annotations

import random
import secrets
import tempfile
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from devhost import disks
from devhost.platform import DISKS_CONTAINER, EVERY_SECOND, Platform

if TYPE_CHECKING:
    from azure.storage.blob import BlobClient

SIZE = 1024 * disks.MIB
BUDGET_SECONDS = 60
KIB = 1024
DISK, BLOB = "demo-disk", "demo.vhd"


@dataclass(frozen=True)
class Moment:
    """The disk as it was when a backup was taken."""

    name: str
    image: Path
    tree: dict[str, str]
    run: dict[str, Any]


class Demo:
    """One telling of the story, in a temporary folder."""

    def __init__(self, console: Console, folder: Path, seed: int) -> None:
        """Tell it to `console`; `seed` decides every byte of the disk."""
        self.console, self.folder, self.rng = console, folder, random.Random(seed)  # noqa: S311  test data

    def tell(self) -> bool:
        """Run the demo; True when everything it claims was proved."""
        self.console.print("[bold]1[/] Starting the local platform: Azurite (completed), the Functions host, function_app.py")
        # Windows of a second, fired by hand only: two backups of two windows within a minute.
        with Platform(self.folder, timers="demand", settings={"BACKUP_SCHEDULE": EVERY_SECOND}) as platform:
            self.console.print(
                f"  app at {platform.host.origin}/api, storage at {platform.storage.source.blobs.rpartition('/')[0]}"
            )
            return self._story(platform)

    def _story(self, platform: Platform) -> bool:
        image, content = self.folder / "disk.vhd", self.folder / "content"
        self.console.print("[bold]2[/] Making a 1 GiB fixed VHD with an ext4 filesystem and 41 files, and uploading it sparse")
        content.mkdir()
        disks.file_tree(content, self.rng)
        disks.make_vhd(image, SIZE, content)
        with platform.blobs(platform.storage.source) as client:
            blob = client.get_blob_client(DISKS_CONTAINER, BLOB)
            put = disks.upload(image, blob)
            self.console.print(f"  {image.stat().st_size:,} bytes long, {put:,} bytes uploaded")
            return self._back_up_twice(platform, image, blob)

    def _back_up_twice(self, platform: Platform, image: Path, blob: BlobClient) -> bool:
        self.console.print(f"[bold]3[/] Protecting it by HTTP (PUT /api/disks/{DISK}) and firing the timer: a full backup")
        platform.protect(DISK, BLOB)
        moments = [self._moment(platform, "first", image)]
        self.console.print("[bold]4[/] Changing the disk as a guest does: files added, changed, deleted, freed blocks trimmed")
        disks.change(image, self.rng, self.folder)
        sent = disks.replay_changes(moments[0].image, image, blob)
        self.console.print(f"  {sent.written:,} bytes written, {sent.cleared:,} bytes cleared on the source blob")
        self.console.print("[bold]5[/] Firing the timer again: an incremental backup")
        moments.append(self._moment(platform, "second", image))
        self.console.print("[bold]6[/] Reading every backup snapshot back: bytes, filesystem check, file tree")
        proofs = self._prove(platform, moments)
        self._show(platform, moments, proofs)
        return all(proof == "equal" for proof in proofs.values()) and len(proofs) == len(moments)

    def _moment(self, platform: Platform, name: str, image: Path) -> Moment:
        kept = self.folder / f"{name}.vhd"
        disks.copy_sparse(image, kept)
        known = {instance["instanceId"] for instance in platform.host.instances(f"{DISK}.")}
        platform.host.fire("scheduled_backup")
        run = self._follow(platform, self._new_run(platform, known))
        return Moment(name, kept, disks.tree_of(kept, self.folder), run)

    @staticmethod
    def _new_run(platform: Platform, known: set[str]) -> str:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            fresh = {instance["instanceId"] for instance in platform.host.instances(f"{DISK}.")} - known
            if fresh:
                return str(fresh.pop())
            time.sleep(0.05)
        message = "the timer started no run within 30 s; see the host's log"
        raise TimeoutError(message)

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
        else:
            self.console.print(f"  {_way(ended)}")
        return ended

    # -- proof ------------------------------------------------------------------------------------------------------

    def _prove(self, platform: Platform, moments: list[Moment]) -> dict[str, str]:
        points = {point["run"]: point for point in platform.points(DISK)}
        proofs = {}
        with platform.blobs(platform.storage.backup) as client:
            for moment in moments:
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

    def _show(self, platform: Platform, moments: list[Moment], proofs: dict[str, str]) -> None:
        points = {point["run"]: point for point in platform.points(DISK)}
        table = Table(title="Restore points", title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        for name in ("point", "kind"):
            table.add_column(name, no_wrap=True)
        for name in ("size", "changed", "cleared", "requests", "seconds"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("verified", no_wrap=True)
        for moment in moments:
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
        self.console.print("verified: every byte read back and compared, e2fsck -n clean, every file's SHA-256 equal")


def main() -> int:
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
            proved = Demo(console, Path(folder), seed).tell()
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
        console.print("[green]Every restore point equals the disk at its moment.[/]")
        return 0
    console.print("[red]A restore point is missing or differs: see the table and the log above.[/]")
    return 1


def _way(run: dict[str, Any]) -> str:
    """How the bytes of a run travelled."""
    copied, streamed = run["bytesDone"], run["bytesStreamed"]
    if streamed:
        return f"stream mode: {_sized(streamed)} of {_sized(copied)} copied passed through the worker"
    return f"server mode: the backup account fetched {_sized(copied)} itself; 0 bytes copied passed through the worker"


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
