"""`python -m devhost.functions DIRECTORY`: serve an app's function_app.py on loopback until stopped.

Prints one line `ready PORT` when it serves. Settings come from the environment. DEVHOST_CONNECTIONS names a file that says
where the app connected to.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from pathlib import Path

from aiohttp import web

from devhost.functions.connections import record
from devhost.functions.engine import Engine
from devhost.functions.hub import Hub
from devhost.functions.index import App
from devhost.functions.timers import Timers
from devhost.functions.web import application

LOOPBACK = "127.0.0.1"


async def serve(directory: Path, hub_file: Path, port: int, *, timers_on_schedule: bool) -> None:
    """Serve until the process is asked to end."""
    app = App(directory)
    hub = Hub(hub_file)
    # Functions get the host's own address, so the socket is bound before the routes exist.
    listening = socket.create_server((LOOPBACK, port))
    bound = listening.getsockname()[1]
    engine = Engine(app, hub, f"http://{LOOPBACK}:{bound}")
    timers = Timers(engine, on_schedule=timers_on_schedule)
    runner = web.AppRunner(application(engine, timers), access_log=None)
    await runner.setup()
    await web.SockSite(runner, listening).start()
    engine.start()
    timers.start()
    print(f"ready {bound}", flush=True)
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    await stopped.wait()
    engine.partitions.leave()
    hub.close()
    # The app's own clients and threads end with the process, which gives them no notice.
    os._exit(0)


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(0)


def main() -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(prog="devhost.functions", description=__doc__)
    parser.add_argument("directory", type=Path, help="folder with function_app.py and host.json")
    parser.add_argument("--hub", type=Path, required=True, help="SQLite file of the task hub, created when missing")
    parser.add_argument("--port", type=int, default=0, help="port on loopback; 0 takes a free one")
    parser.add_argument("--timers", choices=("schedule", "demand"), default="schedule", help="when timers fire")
    parser.add_argument("--tied", action="store_true", help="end when standard input closes")
    parser.add_argument("--log", default="INFO", help="log level")
    arguments = parser.parse_args()
    logging.basicConfig(level=arguments.log, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    if connections := os.environ.get("DEVHOST_CONNECTIONS"):
        record(Path(connections))
    if arguments.tied:
        threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(
            serve(
                arguments.directory.resolve(),
                arguments.hub,
                arguments.port,
                timers_on_schedule=arguments.timers == "schedule",
            )
        )


if __name__ == "__main__":
    main()
