"""Real disks to protect: fixed VHDs with an ext4 filesystem in them, made and changed without root, uploaded sparse."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import struct
import subprocess
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from azure.storage.blob import BlobClient

MIB = 1024 * 1024
CHUNK = 4 * MIB
BLOCK = 4096
FOOTER_BYTES = 512
_EPOCH_2000 = 946_684_800


class DiskToolsMissingError(Exception):
    """The programs of e2fsprogs are not installed."""


class DiskDamagedError(Exception):
    """A disk read back is not what it should be."""


def _run(*command: str, ok: tuple[int, ...] = (0,)) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, errors="replace")  # noqa: S603  fixed programs
    if done.returncode not in ok:
        message = f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()} {done.stdout.strip()}"
        raise DiskDamagedError(message)
    return done.stdout


def require_tools() -> None:
    """Raise DiskToolsMissingError unless mkfs.ext4, debugfs and e2fsck are there."""
    os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    missing = [tool for tool in ("mkfs.ext4", "debugfs", "e2fsck") if shutil.which(tool) is None]
    if missing:
        message = f"{', '.join(missing)} not found; install the package e2fsprogs"
        raise DiskToolsMissingError(message)


# -- images -----------------------------------------------------------------------------------------------------


def vhd_footer(size: int) -> bytes:
    """The footer of a fixed VHD of `size` bytes (Virtual Hard Disk Image Format Specification, hard disk footer)."""
    sectors = size // 512
    cylinders = min(sectors // (16 * 63), 65535)
    fields = (
        b"conectix",
        2,
        0x00010000,
        2**64 - 1,
        int(time.time()) - _EPOCH_2000,
        b"pgkp",
        0x00010000,
        b"Wi2k",
        size,
        size,
        cylinders,
        16,
        63,
        2,
    )
    head = struct.pack(">8sIIQI4sI4sQQHBBI", *fields)
    tail = uuid.uuid4().bytes + bytes(428)
    checksum = ~sum(head + tail) & 0xFFFFFFFF
    return (head + struct.pack(">I", checksum) + tail).ljust(FOOTER_BYTES, b"\0")


def file_tree(folder: Path, rng: random.Random) -> None:
    """A known file tree: about 40 files, 16 MiB, in nested folders."""
    for number in range(40):
        place = folder / f"data{number % 5}" / f"set{number % 3}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"file{number:02d}.bin").write_bytes(rng.randbytes(rng.randrange(1, 200) * BLOCK))
    (folder / "readme.txt").write_text("A disk made by the demo.\n")


def make_vhd(image: Path, size: int, content: Path) -> None:
    """A sparse fixed VHD of `size` bytes plus footer, holding an ext4 filesystem with the files of `content`."""
    with image.open("wb") as file:
        file.truncate(size)
    _run("mkfs.ext4", "-q", "-F", "-b", str(BLOCK), "-d", str(content), str(image), str(size // 1024) + "k")
    with image.open("r+b") as file:
        file.seek(size)
        file.write(vhd_footer(size))


def debugfs(image: Path, *commands: str) -> str:
    """Run debugfs commands that may write."""
    script = image.with_suffix(".commands")
    script.write_text("\n".join(commands) + "\n")
    try:
        return _run("debugfs", "-w", "-f", str(script), str(image))
    finally:
        script.unlink()


def note(image: Path, text: str, scratch: Path) -> None:
    """Change the disk as a guest does: write a small file."""
    written = scratch / "note.txt"
    written.write_text(text)
    debugfs(image, f"write {written} note.txt")


def change(image: Path, rng: random.Random, scratch: Path) -> None:
    """Change the disk as a guest does between two backups: add, change and delete files, and trim the deleted ones."""
    added, changed = scratch / "added.bin", scratch / "changed.bin"
    added.write_bytes(rng.randbytes(3 * MIB + 1234))
    changed.write_bytes(rng.randbytes(777_777))
    deleted = ["/data1/set1/file01.bin", "/data4/set0/file09.bin"]
    freed = [int(block) for name in deleted for block in debugfs(image, f"blocks {name}").splitlines()[-1].split()]
    debugfs(
        image,
        f"write {added} added.bin",
        "mkdir new",
        f"write {added} new/second.bin",
        "rm /data2/set2/file02.bin",
        f"write {changed} changed.bin",
        *(f"rm {name}" for name in deleted),
    )
    in_use = _used_again(image, freed)
    with image.open("r+b") as file:
        for block in freed:
            if block not in in_use:
                punch(file.fileno(), block * BLOCK, BLOCK)


def _used_again(image: Path, blocks: list[int]) -> set[int]:
    lines = debugfs(image, *(f"testb {block}" for block in blocks)).splitlines()
    return {int(line.split()[1]) for line in lines if line.startswith("Block") and "marked in use" in line}


def punch(descriptor: int, offset: int, length: int) -> None:
    """Make a hole in a file, as a guest's trim does in a disk."""
    import ctypes  # noqa: PLC0415  Linux only, as the demo is

    libc = ctypes.CDLL(None, use_errno=True)
    keep_size_and_punch = 0x01 | 0x02
    if libc.fallocate(descriptor, keep_size_and_punch, ctypes.c_long(offset), ctypes.c_long(length)):
        raise OSError(ctypes.get_errno(), "fallocate: the filesystem of the temporary folder cannot punch holes")


def extents(image: Path) -> Iterator[tuple[int, int]]:
    """The [start, end) byte ranges of a sparse file that hold data, whole blocks."""
    with image.open("rb") as file:
        size, position = os.fstat(file.fileno()).st_size, 0
        while position < size:
            try:
                start = os.lseek(file.fileno(), position, os.SEEK_DATA)
            except OSError:  # no data after this
                return
            position = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            yield start - start % 512, min(-(-position // 512) * 512, size)


def copy_sparse(source: Path, target: Path) -> None:
    """Copy a file, holes stay holes."""
    with source.open("rb") as read, target.open("wb") as write:
        write.truncate(source.stat().st_size)
        for start, end in extents(source):
            read.seek(start)
            write.seek(start)
            write.write(read.read(end - start))


# -- to and from the cloud ----------------------------------------------------------------------------------------


def upload(image: Path, blob: BlobClient) -> int:
    """Create the page blob and put every page that holds data; returns the bytes put."""
    blob.create_page_blob(image.stat().st_size)
    return sum(_put(image, blob, start, end) for start, end in extents(image))


def _put(image: Path, blob: BlobClient, start: int, end: int) -> int:
    put = 0
    with image.open("rb") as file:
        for offset in range(start, end, CHUNK):
            file.seek(offset)
            data = file.read(min(CHUNK, end - offset))
            if data.count(0) != len(data):
                blob.upload_page(data, offset, len(data))
                put += len(data)
    return put


@dataclass(frozen=True)
class Replayed:
    """The requests that brought a disk blob to a new image."""

    written: int
    cleared: int


def replay_changes(before: Path, after: Path, blob: BlobClient, lease: str | None = None) -> Replayed:
    """Send the blocks that differ between two images, as a guest's writes and trims would arrive: under its machine's lease."""
    written = cleared = 0
    touched = sorted(
        {block for image in (before, after) for s, e in extents(image) for block in range(s // BLOCK, -(-e // BLOCK))}
    )
    size = after.stat().st_size
    with before.open("rb") as old, after.open("rb") as new:
        for block in touched:
            start, end = block * BLOCK, min((block + 1) * BLOCK, size)
            old.seek(start)
            new.seek(start)
            was, now = old.read(end - start), new.read(end - start)
            if was == now:
                continue
            if now.count(0) == len(now):
                blob.clear_page(start, end - start, lease=lease)
                cleared += end - start
            else:
                blob.upload_page(now, start, end - start, lease=lease)
                written += end - start
    return Replayed(written, cleared)


def download(blob: BlobClient, size: int, target: Path) -> None:
    """Read a blob or snapshot back whole, every byte by ranged reads; zeros become holes."""
    with target.open("wb") as file:
        file.truncate(size)
        with ThreadPoolExecutor(4) as threads:
            offsets = range(0, size, CHUNK)
            reads = threads.map(lambda offset: _read(blob, offset, min(CHUNK, size - offset)), offsets)
            for offset, data in zip(offsets, reads, strict=True):
                if data.count(0) != len(data):
                    file.seek(offset)
                    file.write(data)


def _read(blob: BlobClient, offset: int, length: int) -> bytes:
    data: bytes = blob.download_blob(offset=offset, length=length, max_concurrency=1).readall()
    if len(data) != length:
        message = f"{blob.blob_name}: {len(data)} bytes at {offset}, expected {length}"
        raise DiskDamagedError(message)
    return data


def first_difference(left: Path, right: Path) -> int | None:
    """Offset of the first byte that differs, the shorter file's end when one is a prefix, or None when both are equal."""
    with left.open("rb") as a, right.open("rb") as b:
        offset = 0
        while True:
            x, y = a.read(CHUNK), b.read(CHUNK)
            if x != y:
                return offset + next((i for i, (p, q) in enumerate(zip(x, y, strict=False)) if p != q), min(len(x), len(y)))
            if not x:
                return None
            offset += len(x)


def check_filesystem(image: Path) -> None:
    """e2fsck -n finds nothing; raises DiskDamagedError otherwise."""
    _run("e2fsck", "-f", "-n", str(image))


def tree_of(image: Path, scratch: Path) -> dict[str, str]:
    """The files in the image's filesystem: path to SHA-256."""
    out = scratch / "tree"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    _run("debugfs", "-R", f"rdump / {out}", str(image))
    found = {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file()
    }
    shutil.rmtree(out)
    return found
