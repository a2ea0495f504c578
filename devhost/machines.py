"""Virtual machines of the local platform: the stand-in for Azure Resource Manager as a child process, and its control."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import requests

from devhost.processes import Child, Served

if TYPE_CHECKING:
    from collections.abc import Mapping

    from devhost.storage import Account

REPOSITORY = Path(__file__).parent.parent
SUBSCRIPTION = "11111111-2222-3333-4444-555555555555"
GROUP = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/demo"


def machine_id(name: str) -> str:
    """The id of a machine in the platform's resource group."""
    return f"{GROUP}/providers/Microsoft.Compute/virtualMachines/{name}"


def account_id(name: str) -> str:
    """The id of a storage account in the same group."""
    return f"{GROUP}/providers/Microsoft.Storage/storageAccounts/{name}"


def disk_id(name: str) -> str:
    """The id of a managed disk in the same group."""
    return f"{GROUP}/providers/Microsoft.Compute/disks/{name}"


class Machines(Served):
    """The stand-in."""

    def __init__(self, folder: Path, accounts: list[Account]) -> None:
        """Start it; attached VHDs are blobs of `accounts`, one of which holds the contents of managed disks."""
        folder.mkdir(parents=True, exist_ok=True)
        found: dict[str, str] = {}

        def is_ready(line: str) -> bool:
            match = re.fullmatch(r"ready (\d+)\n", line)
            if match:
                found["port"] = match.group(1)
            return match is not None

        known = {account.blobs: [account.name, account.key] for account in accounts}
        self._child = Child(
            [sys.executable, "-m", "devhost.arm"],
            folder / "arm.log",
            folder=REPOSITORY,
            environment={"PAGEKEEPER_ACCOUNTS": json.dumps(known)},
            is_ready=is_ready,
        )
        self.endpoint = f"http://127.0.0.1:{found['port']}"

    # -- control ------------------------------------------------------------------------------------------------------

    def control(self, method: str, what: str = "", body: object = None) -> dict[str, Any]:
        """One call of the control address; raises ValueError with the stand-in's words when it refuses."""
        answer = requests.request(method, f"{self.endpoint}/__control/{what}", json=body, timeout=30)
        value: dict[str, Any] = answer.json()
        if answer.status_code != requests.codes.ok:
            raise ValueError(value["error"])
        return value

    def reset(self) -> None:
        """No faults, default switches."""
        self.control("DELETE")

    def faults(self, *rules: Mapping[str, object]) -> None:
        """Replace the list of faults."""
        self.control("POST", "faults", list(rules))

    def switch(self, **switches: object) -> None:
        """Turn switches."""
        self.control("POST", "switches", switches)

    def make(
        self, name: str, *, os: str = "", data: Mapping[int, str] | None = None, power: str = "running", controller: str = ""
    ) -> str:
        """A machine with these VHDs (or managed disks, by id) attached, by that disk controller; its id."""
        storage: dict[str, Any] = {
            "dataDisks": [
                {"lun": lun, "name": f"{name}-data-{lun}", "createOption": "Attach", "caching": "ReadOnly", **_source(one)}
                for lun, one in (data or {}).items()
            ]
        }
        if os:
            storage["osDisk"] = {
                "osType": "Linux",
                "name": f"{name}-os",
                "createOption": "Attach",
                "caching": "ReadWrite",
                **_source(os),
            }
        if controller:
            storage["diskControllerType"] = controller
        self.control("PUT", "machines", {"id": machine_id(name), "storageProfile": storage, "power": power})
        return machine_id(name)

    def make_disk(
        self, name: str, *, data_bytes: int = 0, vhd: str = "", properties: Mapping[str, object] | None = None, **more: object
    ) -> str:
        """A managed disk of zeros, or with the content of a VHD, by its page blob's URL; its id.

        `properties` and `more` (sku, zones, location) are as Azure shows them. One that is there is replaced by another of its
        name, with another unique id, which stays in its machine.
        """
        content: dict[str, object] = {"from": vhd} if vhd else {"bytes": data_bytes}
        self.control("PUT", "disks", {"id": disk_id(name), **content, "properties": dict(properties or {}), "more": more})
        return disk_id(name)

    def grow_disk(self, disk: str, data_bytes: int) -> None:
        """Resize a managed disk."""
        self.control("POST", "disks", {"id": disk, "bytes": data_bytes})

    def fill(self, snapshot: str, percent: float, error: str = "") -> None:
        """Set the percentage to which a snapshot is filled in the background, or why it never will be."""
        self.control("POST", "filled", {"id": snapshot, "percent": percent, "error": error})

    def content(self, disk: str) -> str:
        """The URL of the page blob that a managed disk's guest writes to: with the key of the storage's `exports` account."""
        return str(next(one["content"] for one in self.control("GET")["disks"] if one["id"].lower() == disk.lower()))

    def snapshots(self) -> list[dict[str, Any]]:
        """All snapshots of managed disks, as Azure shows them."""
        found: list[dict[str, Any]] = self.control("GET")["snapshots"]
        return found

    def open(self, named: str = "") -> list[str]:
        """The disks and snapshots with that text in their id, in lower case, that access is granted to."""
        found: list[str] = self.control("GET")["open"]
        return [one for one in found if named.lower() in one]

    def delete(self, name: str) -> None:
        """Remove a machine; its disks are released."""
        self.control("DELETE", "machines", {"id": machine_id(name)})

    def machine(self, name: str) -> dict[str, Any]:
        """A machine as Azure shows it."""
        return next(one for one in self.control("GET")["machines"] if one["name"] == name)

    def source(self, name: str, lun: int | str) -> str | None:
        """The source of a machine's OS disk (`os`) or of the disk at a LUN."""
        storage = self.machine(name)["properties"]["storageProfile"]
        disks = [storage.get("osDisk")] if lun == "os" else [one for one in storage["dataDisks"] if one["lun"] == lun]
        return next((one["vhd"]["uri"] if "vhd" in one else one["managedDisk"]["id"] for one in disks if one), None)

    def power(self, name: str) -> str:
        """Whether a machine runs."""
        return str(self.machine(name)["properties"]["instanceView"]["statuses"][0]["code"].partition("/")[2])

    def lease(self, url: str) -> str | None:
        """The lease of an attached VHD: what its guest writes with."""
        lease: str | None = self.control("GET")["leases"].get(url)
        return lease


def _source(text: str) -> dict[str, Any]:
    return {"managedDisk": {"id": text}} if text.startswith("/subscriptions/") else {"vhd": {"uri": text}}
