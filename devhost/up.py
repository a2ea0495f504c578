"""`make up`: the local platform for a person to play with."""

from __future__ import annotations

import signal
import tempfile
import threading
from pathlib import Path

from devhost.platform import DISKS_CONTAINER, Platform

PLAY_BLOB, PLAY_BYTES, PLAY_VM = "play.vhd", 64 * 1024 * 1024, "play-vm"


def main() -> int:
    """Start everything, say what runs and what to try, and wait for Ctrl-C."""
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    with tempfile.TemporaryDirectory(prefix="pagekeeper-up-") as folder, Platform(Path(folder), timers="schedule") as platform:
        with platform.blobs(platform.storage.source) as client:
            blob = client.get_blob_client(DISKS_CONTAINER, PLAY_BLOB)
            blob.create_page_blob(PLAY_BYTES)
            blob.upload_page(b"pagekeeper".ljust(512, b"\0") * 8, 0, 4096)
        vm = platform.machines.make(PLAY_VM, data={0: platform.disk_url(PLAY_BLOB)})
        print(_told(platform, vm), flush=True)
        stopped.wait()
        print("\nstopping", flush=True)
    print("stopped; nothing is left running", flush=True)
    return 0


def _told(platform: Platform, vm: str) -> str:
    api, storage = platform.host.origin + "/api", platform.storage
    return f"""The local platform runs:
  Functions host   {api:<36} process {platform.host.pid}
  source account   {storage.source.blobs:<36} process {storage.pid}
  backup account   {storage.backup.blobs}
  catalogue        {storage.state.tables}
  VM stand-in      {platform.machines.endpoint:<36} process {platform.machines.pid}
  logs             {platform.host.log}
The timer follows BACKUP_SCHEDULE ({platform.settings["BACKUP_SCHEDULE"]}, UTC). To try: a disk of 64 MiB, in VM {PLAY_VM}:

  curl -X PUT {api}/disks/play -d '{{"source": "{platform.disk_url(PLAY_BLOB)}", "machine": {{"vm": "{vm}", "lun": 0}}}}'
  curl -i -X POST {api}/disks/play/backups
  curl {api}/disks/play/restore-points
  curl -X POST {api}/disks/play/restores -d '{{"restorePoint": "latest", "repoint": true, "dryRun": true}}'

Ctrl-C stops everything."""
