"""`make up`: the local platform for a person to play with."""

from __future__ import annotations

import json
import signal
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from devhost.disks import FOOTER_BYTES, vhd_footer
from devhost.platform import DISKS_CONTAINER, REPOSITORY, Platform

if TYPE_CHECKING:
    from collections.abc import Mapping

PLAY_BYTES = 64 * 1024 * 1024
DISKS = {"play": "play-vm", "web": "web-vm"}
"""Disks to play with, each in a machine of its own: one for the printed lines, one for the handbook's."""
FUNCTIONS = [line for line in (REPOSITORY / "docs" / "deploy.md").read_text().splitlines() if "() {" in line]
"""The handbook's functions for the shell: what its calls are made with."""


def main() -> int:
    """Start everything, say what runs and what to try, and wait for Ctrl-C."""
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    with tempfile.TemporaryDirectory(prefix="pagekeeper-up-") as folder, Platform(Path(folder), timers="schedule") as platform:
        with platform.blobs(platform.storage.source) as client:
            for name in DISKS:
                blob = client.get_blob_client(DISKS_CONTAINER, f"{name}.vhd")
                blob.create_page_blob(PLAY_BYTES + FOOTER_BYTES)
                blob.upload_page(b"pagekeeper".ljust(512, b"\0") * 8, 0, 4096)
                blob.upload_page(vhd_footer(PLAY_BYTES), PLAY_BYTES, FOOTER_BYTES)
        machines = {name: platform.machines.make(vm, data={0: platform.disk_url(f"{name}.vhd")}) for name, vm in DISKS.items()}
        print(_welcome(platform, machines), flush=True)
        stopped.wait()
        print("\nstopping", flush=True)
    print("stopped; nothing is left running", flush=True)
    return 0


def _welcome(platform: Platform, machines: Mapping[str, str]) -> str:
    api, storage = platform.host.origin + "/api", platform.storage
    functions = "\n  ".join(FUNCTIONS)
    play = json.dumps({"source": platform.disk_url("play.vhd"), "machine": {"vm": machines["play"], "lun": 0}})
    return f"""The local platform runs:
  Functions host   {api:<36} process {platform.host.pid}
  source account   {storage.source.blobs:<36} process {storage.pid}
  backup account   {storage.backup.blobs}
  catalogue        {storage.state.tables}
  VM stand-in      {platform.machines.endpoint:<36} process {platform.machines.pid}
  logs             {platform.host.log}
The timer follows BACKUP_SCHEDULE ({platform.settings["BACKUP_SCHEDULE"]}, UTC).

A first try, to be pasted as it is: protect a disk of 64 MiB in VM {DISKS["play"]}, back it up, wait for the restore point, ask
what a restore would do.

  curl -X PUT {api}/disks/play -d '{play}'
  curl -i -X POST {api}/disks/play/backups
  for try in $(seq 60); do curl -s {api}/disks/play | grep -q '"newestRestorePoint":"' && break; sleep 1; done
  curl {api}/disks/play/restore-points
  curl -X POST {api}/disks/play/restores -d '{{"restorePoint": "latest", "repoint": true, "dryRun": true}}'

What the handbook's calls need, for a second disk (no key is asked for here, any will do), and the accounts for other tools:

  export API={api} KEY=any
  export DISK_URL={platform.disk_url("web.vhd")}
  export VM={machines["web"]}
  {functions}
  export SOURCE_CONNECTION='{storage.source.connection_string}'
  export BACKUP_CONNECTION='{storage.backup.connection_string}'

Ctrl-C stops everything."""
