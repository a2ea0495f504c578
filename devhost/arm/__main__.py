"""`python -m devhost.arm`: serve the stand-in on loopback until stopped.

Prints one line `ready PORT`. Storage accounts come as JSON in PAGEKEEPER_ACCOUNTS: blob endpoint to [name, key]; the one
whose name begins with md- holds the contents of managed disks.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import threading

from aiohttp import web

from devhost.arm.exports import Contents
from devhost.arm.leases import Disks
from devhost.arm.state import Cloud
from devhost.arm.web import application

LOOPBACK = "127.0.0.1"


async def serve() -> None:
    """Serve until the process is asked to end."""
    accounts = {url: (name, key) for url, (name, key) in json.loads(os.environ["PAGEKEEPER_ACCOUNTS"]).items()}
    exports = next(url for url, (name, _) in accounts.items() if name.startswith("md-"))
    contents, disks = Contents(exports, *accounts.pop(exports)), Disks(accounts)
    listening = socket.create_server((LOOPBACK, 0))
    runner = web.AppRunner(application(Cloud(disks, contents)), access_log=None)
    await runner.setup()
    await web.SockSite(runner, listening).start()
    print(f"ready {listening.getsockname()[1]}", flush=True)
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    await stopped.wait()
    await runner.cleanup()
    await disks.close()
    await contents.close()


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    asyncio.run(serve())
