"""A million ranges listed and planned: processor time and memory, beside the SDK's listing.

`python -m bench.listing WAY PORT` is one of them in a process of its own; it prints what it took.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time

from azure.storage.blob import BlobClient

from backup_core.domain.ranges import DISK_BYTES_MAX
from bench.page import Section, table, verdict, words
from bench.worker import Took
from tests.ports.million import BYTES_MAX, RANGES, peak_bytes, served
from tests.ports.million import measure as planned

CPU_GOAL = 0.2


def _product(port: int) -> Took:
    """The listing and the planning of the app."""
    began = time.monotonic()
    plan, added, cpu = asyncio.run(planned(port))
    if plan.ranges != RANGES:
        message = f"{plan.ranges} ranges were planned, expected {RANGES}"
        raise RuntimeError(message)
    return Took(cpu, time.monotonic() - began, peak_bytes() - added, added)


def _sdk(port: int) -> Took:
    """list_page_ranges of azure-storage-blob, to a list."""
    blob = BlobClient.from_blob_url(f"http://127.0.0.1:{port}/source/vhds/disk.vhd?sig=x")
    before, began, cpu = peak_bytes(), time.monotonic(), time.process_time()
    found = list(blob.list_page_ranges(offset=0, length=DISK_BYTES_MAX))
    if len(found) != RANGES:
        message = f"{len(found)} ranges were listed, expected {RANGES}"
        raise RuntimeError(message)
    return Took(time.process_time() - cpu, time.monotonic() - began, before, peak_bytes() - before)


def _run(way: str, port: int) -> Took:
    command = [sys.executable, "-m", "bench.listing", way, f"{port}"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)  # noqa: S603  our own module
    if ended.returncode:
        raise RuntimeError(ended.stderr)
    return Took(**json.loads(ended.stdout))


def section(product: Took, sdk: Took) -> Section:
    """Both beside each other."""
    ratio = product.cpu / sdk.cpu
    rows = [
        ("memory added, MB", f"{product.added / 1e6:.1f}", f"{sdk.added / 1e6:.0f}", f"at most {BYTES_MAX / 1e6:.0f}",
         verdict(met=product.added <= BYTES_MAX)),
        ("CPU, s", f"{product.cpu:.2f}", f"{sdk.cpu:.1f}", "", ""),
        ("of the SDK's", f"{ratio:.2f}", "1", f"at most {CPU_GOAL:g}", verdict(met=ratio <= CPU_GOAL)),
    ]  # fmt: skip
    prose = words(
        f"A diff of {RANGES:,} ranges on a disk of 8 TiB, 10,000 in an answer, from a server in another process: the app lists "
        "and plans it; the SDK does `list(blob.list_page_ranges(offset=0, length=size))`. One run of each. What misses its "
        "goal is processor time: the ranges go through windows side by side, joined and fed to the plan one by one in Python."
    )
    text = f"{prose}\n\n{table(('what', 'the app', 'the SDK', 'goal', ''), rows)}"
    return Section("A million ranges", text, met=product.added <= BYTES_MAX and ratio <= CPU_GOAL)


def measure() -> Section:
    """Each in a process of its own."""
    with served() as port:
        return section(_run("product", port), _run("sdk", port))


if __name__ == "__main__":
    print(json.dumps(vars({"product": _product, "sdk": _sdk}[sys.argv[1]](int(sys.argv[2])))))
