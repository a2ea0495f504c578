"""Refusals of Azure before it begins: rights on named resources, changes of machines, disks that cannot be made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from devhost.arm.leases import RefusedError

Resource = dict[str, Any]
LOCATION = "local"
"""The region of every account and machine."""
TIERS = ("P1", "P2", "P3", "P4", "P6", "P10", "P15", "P20", "P30", "P40", "P50", "P60", "P70", "P80")
TIER_GIB = (4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32767)
"""The size up to which a premium disk has each tier by itself."""
TAGS_MAX = 50


class ConflictError(RefusedError):
    """Refused at once, with a status."""

    def __init__(self, message: str, *, status: int, code: str) -> None:
        """Keep all three."""
        super().__init__(message, code=code)
        self.status = status


def sources(vm: Resource) -> dict[Any, str]:
    """Place to VHD or managed disk, of a machine."""
    storage = vm["properties"].get("storageProfile", {})
    found = {disk["lun"]: _source(disk) for disk in storage.get("dataDisks", [])}
    if "osDisk" in storage:
        found["os"] = _source(storage["osDisk"])
    return found


def _source(disk: Resource) -> str:
    managed = disk.get("managedDisk")
    return str(managed["id"] if managed else disk["vhd"]["uri"])


def is_managed(source: str) -> bool:
    """Whether a disk's source is a resource id, and no URL."""
    return source.startswith("/subscriptions/")


# -- rights -------------------------------------------------------------------------------------------------------------


def linked(body: Resource) -> Iterator[tuple[str, str]]:
    """Actions that Azure asks for on the resources that a request's body names: each with the resource's id."""
    inside = body.get("properties", {})
    for identity in (body.get("identity") or {}).get("userAssignedIdentities") or {}:
        yield "Microsoft.ManagedIdentity/userAssignedIdentities/assign/action", identity
    for card in (inside.get("networkProfile") or {}).get("networkInterfaces") or []:
        yield "Microsoft.Network/networkInterfaces/join/action", card["id"]
    storage = inside.get("storageProfile") or {}
    if (storage.get("imageReference") or {}).get("id"):
        yield "Microsoft.Compute/galleries/images/versions/read", storage["imageReference"]["id"]
    for disk in [*(storage.get("dataDisks") or []), *([storage["osDisk"]] if storage.get("osDisk") else [])]:
        if disk.get("managedDisk"):
            yield "Microsoft.Compute/disks/write", disk["managedDisk"]["id"]
    if (inside.get("encryption") or {}).get("diskEncryptionSetId"):
        yield "Microsoft.Compute/diskEncryptionSets/read", inside["encryption"]["diskEncryptionSetId"]
    if inside.get("diskAccessId"):
        yield "Microsoft.Compute/diskAccesses/read", inside["diskAccessId"]


def group_of(resource: str) -> str:
    """The resource group of an id, lower case."""
    return "/".join(resource.lower().split("/")[:5])


# -- machines -----------------------------------------------------------------------------------------------------------


def refuse_changes(existing: Resource, wanted: Resource) -> None:
    """Raise ConflictError for a change of disks that Azure does not make."""
    before, after = sources(existing), sources(wanted)
    for place, source in before.items():
        if place == "os":
            if after.get("os") != source and existing["power"] != "deallocated":
                message = "The OS disk of a running VM cannot be exchanged."
                raise ConflictError(message, status=409, code="OperationNotAllowed")
        elif after.get(place, source) != source:
            message = f"Changing property 'dataDisk.source' at LUN {place} is not allowed."
            raise ConflictError(message, status=409, code="PropertyChangeNotAllowed")


def refuse_mixtures(wanted: Resource) -> None:
    """Raise ConflictError for a machine with both managed disks and page blobs, and for an attached disk with an origin."""
    if len({is_managed(source) for source in sources(wanted).values()}) > 1:
        message = "Addition of a managed disk to a VM with blob based disks is not supported."
        raise ConflictError(message, status=409, code="OperationNotAllowed")
    for disk in wanted["properties"].get("storageProfile", {}).get("dataDisks", []):
        if disk.get("createOption") == "Attach" and disk.get("sourceResource"):
            message = f"Parameter 'dataDisk.sourceResource' at LUN {disk['lun']} is not allowed with createOption Attach."
            raise ConflictError(message, status=400, code="InvalidParameter")


def refuse_attachment(vm: Resource, place: object, disk: Resource) -> None:
    """Raise ConflictError for a managed disk that does not fit the machine."""
    others = [one for one in owners(disk) if one.lower() != vm["id"].lower()]
    if len(others) >= disk["properties"].get("maxShares", 1):
        message = f"Disk {disk['id']} cannot be attached as the disk is already owned by VM {others[0]}."
        raise ConflictError(message, status=409, code="ConflictingUserInput")
    state = disk["properties"].get("diskState", "")
    if state in ("ReadyToUpload", "ActiveUpload", "ActiveSAS"):
        message = f"Disk {disk['id']} cannot be attached while it is {state}."
        raise ConflictError(message, status=409, code="OperationNotAllowed")
    redundant = (disk.get("sku") or {}).get("name", "").endswith("_ZRS")
    if not redundant and (disk.get("zones") or []) != (vm.get("zones") or []):
        message = f"Disk {disk['id']} cannot be attached to the VM because it is not in the same availability zone as the VM."
        raise ConflictError(message, status=400, code="BadRequest")
    if (disk.get("extendedLocation") or {}) != (vm.get("extendedLocation") or {}):
        # The code and the words are invented.
        message = f"Disk {disk['id']} cannot be attached to the VM because it is not in the same extended location as the VM."
        raise ConflictError(message, status=400, code="BadRequest")
    controller = (vm["properties"].get("storageProfile") or {}).get("diskControllerType", "SCSI")
    supported = (disk["properties"].get("supportedCapabilities") or {}).get("diskControllerTypes", "SCSI")
    if place == "os" and controller.lower() not in supported.lower():
        # As openshift/installer#9232 and kubernetes-sigs/image-builder#1875 quote it.
        message = (
            f"The VM size cannot boot with OS image or disk. Please check that disk controller types supported by the OS image "
            f"or disk ({supported}) is one of the supported disk controller types for the VM size ({controller})."
        )
        raise ConflictError(message, status=400, code="InvalidParameter")
    if place == "os" and security_type(vm) != security_type(disk):
        message = "Security type of VM is not compatible with the security type of attached OS Disk."
        raise ConflictError(message, status=400, code="BadRequest")


def owners(disk: Resource) -> list[str]:
    """The machines that have the disk."""
    return list(disk.get("managedByExtended") or ([disk["managedBy"]] if disk.get("managedBy") else []))


def security_type(resource: Resource) -> str:
    """Of a machine or a managed disk; empty for none."""
    return str((resource["properties"].get("securityProfile") or {}).get("securityType", ""))


# -- managed disks ------------------------------------------------------------------------------------------------------


def refuse_tags(resource: str, tags: dict[str, str], required: list[str]) -> None:
    """Raise ConflictError for tags that Azure does not take, and where one is missing that a policy requires."""
    reserved = [name for name in tags if name.lower().startswith(("microsoft", "azure", "windows"))]
    unfit = [name for name, value in tags.items() if len(name) > 512 or len(value) > 256 or set(name) & set("<>%&\\?/")]
    if reserved or unfit or len(tags) > TAGS_MAX:
        # The limits are documented, the code is invented.
        message = f"{resource} cannot have {len(tags)} tags, at most {TAGS_MAX}, or these: {', '.join([*reserved, *unfit])}."
        raise ConflictError(message, status=400, code="InvalidTag")
    for name in required:
        if name.lower() not in {one.lower() for one in tags}:
            # As velero-io/velero#4744 quotes it.
            message = (
                f"Resource '{resource.rpartition('/')[2]}' was disallowed by policy. Reasons: 'Tag \"{name}\" is missing.'"
            )
            raise ConflictError(message, status=403, code="RequestDisallowedByPolicy")


def refuse_disk(body: Resource, account_of: Callable[[str], str]) -> None:
    """Raise ConflictError for a managed disk that Azure does not make. `account_of` is the account's name of a VHD's URL."""
    inside, sku = body.get("properties", {}), (body.get("sku") or {}).get("name", "Standard_LRS")
    creation, encryption = inside.get("creationData") or {}, inside.get("encryption") or {}
    if creation.get("createOption") == "Import":
        _refuse_import(body, creation, sku, account_of(creation.get("sourceUri", "")))
    faults = {
        "a tier is for premium disks": "tier" in inside and not sku.startswith("Premium_"),
        "diskAccessId and networkAccessPolicy AllowPrivate go together": bool(inside.get("diskAccessId"))
        != (inside.get("networkAccessPolicy") == "AllowPrivate"),
        "encryption with a customer key needs a diskEncryptionSetId": "Customer" in encryption.get("type", "")
        and not encryption.get("diskEncryptionSetId"),
        "securityType TrustedLaunch needs osType and hyperVGeneration V2": security_type({"properties": inside}) != ""
        and (not inside.get("osType") or inside.get("hyperVGeneration") != "V2"),
    }
    for words, wrong in faults.items():
        if wrong:
            raise ConflictError(words, status=400, code="InvalidParameter")
    if creation.get("createOption") == "Upload" and security_type({"properties": inside}):
        message = (
            f"Security Type '{security_type({'properties': inside})}' is not supported for CreateOption 'Upload'. Supported "
            "create options are FromImage, Import, ImportSecure, UploadPreparedSecure."
        )
        raise ConflictError(message, status=400, code="BadRequest")
    if body.get("zones") and sku.endswith("_ZRS"):
        message = f"A disk with sku '{sku}' cannot be created in an availability zone."
        raise ConflictError(message, status=409, code="OperationNotAllowed")


def _refuse_import(body: Resource, creation: Resource, sku: str, account: str) -> None:
    if not creation.get("storageAccountId"):
        message = "Required parameter 'storageAccountId' is missing (null)."
        raise ConflictError(message, status=400, code="BadRequest")
    if account and creation["storageAccountId"].rpartition("/")[2] != account:
        message = f"storageAccountId {creation['storageAccountId']} is not the storage account of {creation['sourceUri']}."
        raise ConflictError(message, status=400, code="BadRequest")
    if body.get("location") != LOCATION:
        message = f"Storage account {account} does not belong to the same region as the disk, {body.get('location')}."
        raise ConflictError(message, status=400, code="BadRequest")
    if sku in ("UltraSSD_LRS", "PremiumV2_LRS"):
        message = f"A disk with sku '{sku}' cannot be created with createOption Import."
        raise ConflictError(message, status=400, code="InvalidParameter")


def refuse_tier(disk: Resource) -> None:
    """Raise RefusedError for a tier below the one that the disk's size has by itself."""
    tier, size = disk["properties"].get("tier"), disk["properties"].get("diskSizeBytes", 0)
    if tier is None:
        return
    if tier not in TIERS:
        message = f"Tier {tier} is not a tier of premium disks."
        raise RefusedError(message, code="InvalidParameter")
    own = next(TIERS[at] for at, gib in enumerate(TIER_GIB) if size <= gib * 1024**3)
    if TIERS.index(tier) < TIERS.index(own):
        message = f"Tier {tier} is below {own}, the tier of the disk's size."
        raise RefusedError(message, code="InvalidParameter")
