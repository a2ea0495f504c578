"""Sources to be protected: looked at on the service, and refused or warned of before a registration is written."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from backup_core.domain import managed_source
from backup_core.domain.errors import AccessDeniedError, BlobMissingError, HostUnknownError, MachineMissingError
from backup_core.domain.metadata import is_marked
from backup_core.domain.naming import MACHINE_ID, BlobAddress
from backup_core.domain.ranges import DISK_BYTES_MAX, PAGE, ByteRange
from backup_core.domain.shown import shortened
from backup_core.domain.vhd import FOOTER_BYTES, vhd_faults
from backup_core.operations.refusal import RefusedError

if TYPE_CHECKING:
    from backup_core.domain.naming import DiskAddress, Source
    from backup_core.ports import BlobProperties
    from backup_core.protocol.tools import Tools

CREATED_MIN = datetime(2016, 1, 1, tzinfo=UTC)
"""Page-range diffs exist for blobs created since then (Get Page Ranges)."""


async def source_warnings(tools: Tools, source: Source) -> list[str]:
    """Warnings about a source that can be backed up. Raises RefusedError for one that cannot."""
    return await (_blob_warnings(tools, source) if isinstance(source, BlobAddress) else _disk_warnings(tools, source))


async def _disk_warnings(tools: Tools, address: DiskAddress) -> list[str]:
    disk = await tools.machines.managed_disk(address.id)
    if disk is None:
        message = f"source {address} does not exist; expected a managed disk; correct its resource id"
        raise RefusedError(400, "SourceNotFound", message, "source")
    machine, found = None, []
    if disk.machine and not MACHINE_ID.fullmatch(disk.machine):
        found.append(
            f"{disk.machine}, which uses the disk, is no virtual machine of its own (an instance of a scale set is none): it "
            "was not looked at, and no restore gives it its new disk; restore to a page blob, or beside a VM that you name"
        )
    elif disk.machine:
        try:
            machine = await tools.machines.machine(disk.machine)
        except AccessDeniedError as error:
            why = f"{error.code}: {shortened(str(error))}"
            found.append(f"VM {disk.machine}, which uses the disk, could not be read ({why})")
        except MachineMissingError:
            pass  # deleted in this moment: no VM uses the disk
    if faults := managed_source.faults(disk, machine, tools.snapshot_group):
        message = f"source {address} cannot be protected: {'; '.join(faults)}"
        raise RefusedError(400, "SourceUnfit", message, "source")
    return found + managed_source.warnings(disk, machine)


async def _blob_warnings(tools: Tools, address: BlobAddress) -> list[str]:
    properties = await _checked_properties(tools, address)
    found = []
    if is_marked(properties.metadata):
        found.append(
            f"{address} carries metadata of this app: a snapshot or a backup was copied onto it, or a restore never completed "
            "it. Snapshots that others take of it inherit them, are kept, and are reported every night; remove the names that "
            "begin with pagekeeper_ from the blob's metadata"
        )
    footer = ByteRange(properties.size - FOOTER_BYTES, properties.size)
    if faults := vhd_faults(await tools.blobs.read(address, "", footer), properties.size):
        # A restore would find it out too, on the day the disk is needed.
        found.append(
            f"{address} can be backed up, and restored to a page blob, but not to a managed disk, which is made of a fixed VHD "
            f"of whole mebibytes and a footer: {'; '.join(faults)}"
        )
    return found


async def _checked_properties(tools: Tools, address: BlobAddress) -> BlobProperties:
    """The blob's properties. Raises RefusedError for a blob that cannot be backed up."""
    try:
        found = await tools.blobs.properties(address)
    except BlobMissingError as error:
        message = f"source {address} does not exist; expected a page blob"
        raise RefusedError(400, "SourceNotFound", message, "source") from error
    except HostUnknownError as error:
        raise RefusedError(400, error.code, f"source {address} is refused: {error}", "source") from error
    faults = []
    if not found.page_blob:
        faults.append("it is not a page blob")
    elif not 0 < found.size <= DISK_BYTES_MAX or found.size % PAGE:
        faults.append(f"it has {found.size} bytes, not whole pages of {PAGE} up to {DISK_BYTES_MAX}")
    if found.created < CREATED_MIN:
        faults.append(
            f"it was created {found.created:%Y-%m-%d}: page-range diffs need a blob created since 2016-01-01; copy it to "
            "a new blob"
        )
    if faults:
        message = f"source {address} cannot be protected: {'; '.join(faults)}"
        raise RefusedError(400, "SourceUnfit", message, "source")
    return found
