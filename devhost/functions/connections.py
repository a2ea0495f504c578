"""Record the addresses that the app looks up or opens connections to. The interpreter itself records them, whatever library
asks.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def record(file: Path) -> None:
    """Append each new (what, host, port) to `file`, a JSON list per line, for the rest of the process's life."""
    seen: set[tuple[str, str, int]] = set()

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "socket.connect":
            host, port = arguments[1][:2] if isinstance(arguments[1], tuple) else (arguments[1], 0)
            found = ("connect", str(host), int(port))
        elif event == "socket.getaddrinfo":
            service = str(arguments[1] or 0)
            found = ("look up", str(arguments[0]), int(service) if service.isdigit() else 0)
        else:
            return
        if found not in seen:
            seen.add(found)
            with file.open("a") as lines:
                lines.write(json.dumps(found) + "\n")

    sys.addaudithook(look)
