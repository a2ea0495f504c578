"""Machines and managed disks in Azure Resource Manager's models, read and written."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from typing import Any

from backup_core.domain.disk_properties import WORDS
from backup_core.domain.managed import UPLOAD, ManagedDisk
from backup_core.domain.metadata import inherited_tags
from backup_core.domain.repoint import Machine, MachineDisk, Power
from backup_core.domain.vhd import FOOTER_BYTES

RUN_TAG = "pagekeeper-run"
EDGE_ZONE = "EdgeZone"
_POWER: dict[str, Power] = {"running": "running", "stopped": "stopped", "deallocated": "deallocated"}
_OWN = frozenset(
    {"lun", "name", "vhd", "managedDisk", "caching", "diskSizeGB", "createOption", "osType", "image", "toBeDetached",
     "sourceResource"}
)  # fmt: skip
"""Properties of a machine's disk that have a field of their own, or that are not sent back: `sourceResource` names what the
disk was made from, and is refused when an existing disk is attached.
"""


def grants(entry: dict[str, Any], action: str) -> bool:
    """Whether an entry of the permissions that Azure lists grants the action."""

    def matches(patterns: list[str]) -> bool:
        return any(fnmatchcase(action.lower(), pattern.lower()) for pattern in patterns)

    return matches(entry.get("actions", [])) and not matches(entry.get("notActions", []))


def size_of(inside: dict[str, Any]) -> int:
    """Bytes of data of a disk or snapshot with these properties, without a footer; 0 where Azure names none.

    Until its upload has ended, a disk has no size yet: Azure names what is to be written (azure-cli's recording
    test_vm_disk_upload).
    """
    wanted = int((inside.get("creationData") or {}).get("uploadSizeBytes") or FOOTER_BYTES) - FOOTER_BYTES
    return int(inside.get("diskSizeBytes") or wanted)


def managed_disk_of(disk: str, found: dict[str, Any]) -> ManagedDisk:
    """The managed disk as Azure describes it."""
    inside = found.get("properties", {})
    encryption = inside.get("encryption") or {}
    return ManagedDisk(
        disk=disk,
        state=inside.get("provisioningState", ""),
        run=(found.get("tags") or {}).get(RUN_TAG, ""),
        size_bytes=size_of(inside),
        sku=(found.get("sku") or {}).get("name", ""),
        os_type=inside.get("osType", ""),
        generation=inside.get("hyperVGeneration", ""),
        source=(inside.get("creationData") or {}).get("sourceUri", ""),
        zones=tuple(found.get("zones") or ()),
        edge_zone=_edge_zone(found),
        security_type=(inside.get("securityProfile") or {}).get("securityType", ""),
        tier=inside.get("tier", ""),
        capabilities=tuple(sorted((inside.get("supportedCapabilities") or {}).items())),
        encryption=encryption.get("type", ""),
        encryption_set=encryption.get("diskEncryptionSetId", ""),
        network_access=inside.get("networkAccessPolicy", ""),
        disk_access=inside.get("diskAccessId", ""),
        public_access=inside.get("publicNetworkAccess", ""),
        access_auth=inside.get("dataAccessAuthMode", ""),
        sector_bytes=int((inside.get("creationData") or {}).get("logicalSectorSize") or 512),
        guest_encrypted=bool((inside.get("encryptionSettingsCollection") or {}).get("enabled")),
        machine=found.get("managedBy", ""),
        sharers=_sharers(found),
        disk_state=inside.get("diskState", ""),
        create_option=(inside.get("creationData") or {}).get("createOption", ""),
        unique=inside.get("uniqueId", ""),
        tags=tuple(sorted((name, value) for name, value in (found.get("tags") or {}).items() if name != RUN_TAG)),
        unkept=tuple((name, _shown(value)) for name in WORDS if (value := _at(inside, name)) not in _UNSET),
    )


_UNSET: tuple[Any, ...] = (None, False, "", {}, [])


def _at(inside: dict[str, Any], path: str) -> Any:  # noqa: ANN401  JSON
    """The property, as Azure Resource Manager names it."""
    above, _, name = path.rpartition(".")
    return (inside.get(above) or {}).get(name) if above else inside.get(name)


def _shown(value: Any) -> str:  # noqa: ANN401  JSON
    return value if isinstance(value, str) else json.dumps(value)


def _sharers(found: dict[str, Any]) -> tuple[str, ...]:
    """The machines that have the disk, once each. Azure names those of a shared one in up to three places."""
    shares = [one.get("vmUri") or "" for one in found.get("properties", {}).get("shareInfo") or []]
    named = [found.get("managedBy") or "", *(found.get("managedByExtended") or []), *shares]
    return tuple({one.lower(): one for one in reversed(named) if one}.values())


def _edge_zone(found: dict[str, Any]) -> str:
    place = found.get("extendedLocation") or {}
    return str(place.get("name") or "") if place.get("type") == EDGE_ZONE else ""


def disk_body(wanted: ManagedDisk, account: str, location: str) -> dict[str, Any]:
    """The request's body for the managed disk: made of its source, or without one to be uploaded to."""
    creation: dict[str, Any] = {"createOption": UPLOAD, "uploadSizeBytes": wanted.size_bytes + FOOTER_BYTES}
    if wanted.source:
        creation = {"createOption": "Import", "sourceUri": wanted.source, "storageAccountId": account}
    properties: dict[str, Any] = {
        "creationData": creation,
        "osType": wanted.os_type,
        "hyperVGeneration": wanted.generation,
        "securityProfile": _filled({"securityType": wanted.security_type}),
        "tier": wanted.tier,
        "supportedCapabilities": dict(wanted.capabilities),
        "encryption": _filled({"type": wanted.encryption, "diskEncryptionSetId": wanted.encryption_set}),
        "networkAccessPolicy": wanted.network_access,
        "diskAccessId": wanted.disk_access,
        "publicNetworkAccess": wanted.public_access,
    }
    body: dict[str, Any] = {
        "location": location,
        "sku": {"name": wanted.sku},
        "extendedLocation": {"name": wanted.edge_zone, "type": EDGE_ZONE} if wanted.edge_zone else None,
        "zones": list(wanted.zones),
        "tags": inherited_tags(dict(wanted.tags), {RUN_TAG: wanted.run}),
        "properties": _filled(properties),
    }
    return _filled(body)


def _filled(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value}


def machine_of(vm: str, found: dict[str, Any], writable: dict[str, Any]) -> Machine:
    """The machine as Azure describes it; `writable` is the part that an update may send back."""
    inside = found.get("properties", {})
    view, storage = inside.get("instanceView") or {}, writable.get("properties", {}).get("storageProfile") or {}
    codes = [str(status.get("code", "")) for status in view.get("statuses") or []]
    power = next((code.partition("/")[2] for code in codes if code.startswith("PowerState/")), "")
    disks = [_disk(disk, disk["lun"]) for disk in storage.get("dataDisks") or []]
    if storage.get("osDisk"):
        disks.insert(0, _disk(storage["osDisk"], None))
    return Machine(
        vm=vm,
        etag=found.get("etag", ""),
        state=inside.get("provisioningState", ""),
        power=_POWER.get(power, "changing"),
        location=found.get("location", ""),
        disks=tuple(disks),
        zones=tuple(found.get("zones") or ()),
        edge_zone=_edge_zone(found),
        generation=view.get("hyperVGeneration", ""),
        security_type=(inside.get("securityProfile") or {}).get("securityType", ""),
    )


def _disk(disk: dict[str, Any], lun: int | None) -> MachineDisk:
    managed = disk.get("managedDisk")
    return MachineDisk(
        name=disk.get("name", ""),
        source=managed["id"] if managed else (disk.get("vhd") or {}).get("uri", ""),
        managed=bool(managed),
        lun=lun,
        caching=disk.get("caching", "None"),
        size_gb=disk.get("diskSizeGB"),
        os_type=disk.get("osType", ""),
        model={name: value for name, value in disk.items() if name not in _OWN},
    )


def changed_storage(storage: dict[str, Any], lun: int | None, disk: MachineDisk | None) -> dict[str, Any]:
    """The part of a storage profile that gives the slot the disk, keeping what is not the disk's own."""
    if lun is None:
        assert disk is not None  # no rule ever leaves a machine without its OS disk
        kept = {name: value for name, value in storage["osDisk"].items() if name not in ("vhd", "managedDisk", "diskSizeGB")}
        return {"osDisk": kept | {"name": disk.name} | _source(disk)}
    others = [one for one in storage.get("dataDisks") or [] if one["lun"] != lun]
    if disk is not None:
        own = {"lun": lun, "name": disk.name, "createOption": "Attach", "caching": disk.caching}
        others.append(disk.model | own | _source(disk))
    return {"dataDisks": others}


def _source(disk: MachineDisk) -> dict[str, Any]:
    size = {"diskSizeGB": disk.size_gb} if disk.size_gb else {}
    return size | ({"managedDisk": {"id": disk.source}} if disk.managed else {"vhd": {"uri": disk.source}})
