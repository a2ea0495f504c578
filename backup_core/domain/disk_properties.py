"""The fate of each property of a managed disk when a restore makes another one in its place: each is decided on."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

Fate = Literal["kept", "machine", "restore", "named", "refused", "origin", "shown"]
"""`kept`: the new disk has it as the former one, or the dry run says why not. `machine`: it is as the machine needs it.
`restore`: the restore itself decides it. `named`: the new disk does not have it, and the dry run says so. `refused`: a restore
that gives the machine the new disk is refused, and the dry run of another one names it. `origin`: it says what the former disk
was made of, and is nothing to be restored. `shown`: Azure shows it, and nobody sets it.
"""
FATES: Mapping[str, Fate] = MappingProxyType(
    {
        "id": "shown",
        "name": "restore",
        "type": "shown",
        "systemData": "shown",
        "tags": "kept",
        "location": "machine",
        "managedBy": "refused",
        "managedByExtended": "refused",
        "sku.name": "kept",
        "sku.tier": "shown",
        "zones": "machine",
        "extendedLocation": "machine",
        "timeCreated": "shown",
        "osType": "machine",
        "hyperVGeneration": "machine",
        "purchasePlan": "named",
        "supportedCapabilities.diskControllerTypes": "kept",
        "supportedCapabilities.acceleratedNetwork": "kept",
        "supportedCapabilities.architecture": "kept",
        "supportedCapabilities.supportedSecurityOption": "kept",
        "creationData.createOption": "restore",
        "creationData.storageAccountId": "restore",
        "creationData.imageReference": "origin",
        "creationData.galleryImageReference": "origin",
        "creationData.sourceUri": "restore",
        "creationData.sourceResourceId": "origin",
        "creationData.sourceUniqueId": "origin",
        "creationData.uploadSizeBytes": "restore",
        "creationData.logicalSectorSize": "named",
        # The guest state: its loss is named by the security type, which the machine decides.
        "creationData.securityDataUri": "origin",
        "creationData.securityMetadataUri": "origin",
        "creationData.performancePlus": "named",
        "creationData.elasticSanResourceId": "origin",
        "creationData.provisionedBandwidthCopySpeed": "origin",
        "creationData.instantAccessDurationMinutes": "origin",
        "diskSizeGB": "restore",
        "diskSizeBytes": "restore",
        "uniqueId": "shown",
        "encryptionSettingsCollection": "refused",
        "provisioningState": "shown",
        "diskIOPSReadWrite": "named",
        "diskMBpsReadWrite": "named",
        "diskIOPSReadOnly": "named",
        "diskMBpsReadOnly": "named",
        "diskState": "shown",
        "encryption.type": "kept",
        "encryption.diskEncryptionSetId": "kept",
        "maxShares": "named",
        "shareInfo": "refused",
        "networkAccessPolicy": "kept",
        "diskAccessId": "kept",
        "burstingEnabledTime": "shown",
        "tier": "kept",
        "burstingEnabled": "named",
        "propertyUpdatesInProgress": "shown",
        "supportsHibernation": "named",
        # A confidential machine gets no managed disk at all; another one has no such disk.
        "securityProfile.securityType": "machine",
        "securityProfile.secureVMDiskEncryptionSetId": "machine",
        "securityProfile.confidentialVMVersion": "shown",
        "completionPercent": "shown",
        "publicNetworkAccess": "kept",
        "dataAccessAuthMode": "named",
        "optimizedForFrequentAttach": "named",
        "LastOwnershipUpdateTime": "shown",
        "availabilityPolicy": "named",
    }
)
"""By the property's name in Azure Resource Manager, without `properties.` before it."""

_LATER = "set it on the new disk while no VM runs with it, if you need that"
WORDS: Mapping[str, str] = MappingProxyType(
    {
        "purchasePlan": f"the new disk names no plan of the Marketplace: {_LATER}",
        "creationData.logicalSectorSize": "the new disk has sectors of 512 bytes, as the disk that was backed up",
        # It can be had only when the disk is made. Whether by an import or an upload is not documented.
        "creationData.performancePlus": (
            "the new disk has the performance of its size: make another one of a snapshot of it, with performance plus, if you "
            "need that"
        ),
        # Whether an import or an upload takes any of these is not documented; a disk that is at rest takes them.
        "maxShares": f"one VM at a time can have the new disk: {_LATER}",
        "burstingEnabled": f"the new disk does not burst on demand: {_LATER}",
        "supportsHibernation": f"a VM does not hibernate with the new disk: {_LATER}",
        "optimizedForFrequentAttach": f"the new disk is not optimized for that: {_LATER}",
        "availabilityPolicy": f"the new disk has Azure's default: {_LATER}",
        "diskIOPSReadWrite": "the new disk has that of its size",
        "diskMBpsReadWrite": "the new disk has that of its size",
        "diskIOPSReadOnly": "the new disk has that of its size",
        "diskMBpsReadOnly": "the new disk has that of its size",
    }
)
"""The loss of each named property, and the next move, in words. The sign-in of an export has words of its own."""
PROVISIONED = frozenset({"diskIOPSReadWrite", "diskMBpsReadWrite", "diskIOPSReadOnly", "diskMBpsReadOnly"})
"""Set on the kinds of disk that a VHD is not imported to; for others, Azure shows what their size has."""
OF_OS_DISKS = frozenset({"supportsHibernation", "purchasePlan"})
DEFAULTS: Mapping[str, str] = MappingProxyType(
    {
        "maxShares": "1",
        "creationData.logicalSectorSize": "512",
        "availabilityPolicy": '{"actionOnDiskDelay": "None"}',
    }
)
"""Values that say as little as none."""
