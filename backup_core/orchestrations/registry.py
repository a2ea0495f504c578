"""Every orchestrator by the name it is started under; function_app.py registers each."""

from __future__ import annotations

from backup_core.orchestrations import (
    backup_disk,
    backup_fleet,
    backup_lane,
    clean_up_disks,
    copy_blob,
    copy_image,
    deliver_disk,
    rebuild_catalogue,
    repoint_machine,
    restore_disk,
    snapshot_disk,
    wait_for_disk,
    wait_for_snapshot,
)

ORCHESTRATORS = {
    backup_disk.NAME: backup_disk.backup_disk,
    backup_fleet.NAME: backup_fleet.backup_fleet,
    backup_lane.NAME: backup_lane.backup_lane,
    copy_blob.NAME: copy_blob.copy_blob,
    copy_image.NAME: copy_image.copy_image,
    deliver_disk.NAME: deliver_disk.deliver_disk,
    clean_up_disks.NAME: clean_up_disks.clean_up_disks,
    rebuild_catalogue.NAME: rebuild_catalogue.rebuild_catalogue,
    repoint_machine.NAME: repoint_machine.repoint_machine,
    restore_disk.NAME: restore_disk.restore_disk,
    snapshot_disk.NAME: snapshot_disk.snapshot_disk,
    wait_for_disk.NAME: wait_for_disk.wait_for_disk,
    wait_for_snapshot.NAME: wait_for_snapshot.wait_for_snapshot,
}
