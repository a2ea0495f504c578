"""Child processes that end with this one: started in a session of their own, ended by closing their standard input."""

from __future__ import annotations

import os
import subprocess
import threading
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType
    from typing import Self

STOP_SECONDS = 10.0
PATIENCE = float(os.environ.get("PAGEKEEPER_PATIENCE", "1"))
"""Every time-out of the platform and of the tests is multiplied by it: for hosts and machines that are slower."""


class ChildFailedError(Exception):
    """A child process ended before it was ready; the text holds the end of its output."""


class Served:
    """A server in a child process; used as a context it ends with it."""

    _child: Child

    def __enter__(self) -> Self:
        """Use as a context."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Stop."""
        self.stop()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._child.pid

    def stop(self) -> None:
        """End it."""
        self._child.stop()


class Child:
    """A running process whose output goes to a file, and whose first lines say when it is ready.

    Its standard input stays open as long as this process lives: the children watch it and end when it closes, so that even
    a killed parent leaves nothing running.
    """

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        *,
        folder: Path,
        environment: Mapping[str, str],
        is_ready: Callable[[str], bool],
        timeout_seconds: float = 60.0,
    ) -> None:
        """Start `command` in `folder` and wait until `is_ready` accepted one of its lines: `timeout_seconds` times PATIENCE."""
        self.log, self._recent = log, deque[str](maxlen=40)
        self._ready, self._decided = False, threading.Event()
        self._process = subprocess.Popen(  # noqa: S603  the caller's own command
            command,
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, args=(is_ready,), daemon=True)
        self._reader.start()
        self._decided.wait(timeout_seconds * PATIENCE)
        # Not by the exit status alone: output ends a moment before its process does.
        if not self._ready or self._process.poll() is not None:
            self.kill()
            message = f"{command[0]} did not become ready; its output ends with:\n" + "\n".join(self._recent)
            raise ChildFailedError(message)

    def _read(self, is_ready: Callable[[str], bool]) -> None:
        assert self._process.stdout is not None
        with self.log.open("a") as log:
            for line in self._process.stdout:
                log.write(line)
                log.flush()
                self._recent.append(line.rstrip())
                if not self._ready and is_ready(line):
                    self._ready = True
                    self._decided.set()
        self._decided.set()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def kill(self) -> None:
        """End the process at once, as a crash would."""
        self._process.kill()
        self._finish()

    def stop(self) -> None:
        """Ask the process to end; end it when it does not."""
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._finish()

    def _finish(self) -> None:
        self._process.wait()
        if self._process.stdin:
            self._process.stdin.close()
        self._reader.join(STOP_SECONDS)
