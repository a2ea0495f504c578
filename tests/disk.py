"""Disks on the platform, with the expected content of each restore point; and a dump of the platform, for "nothing changed"."""

from __future__ import annotations

from azure.core.credentials import AzureNamedKeyCredential
from azure.data.tables import TableServiceClient

from devhost.platform import DISKS_CONTAINER

PAGE = 512


class Disk:
    """A source blob and a bytearray with the same content, which is recorded at each restore point."""

    def __init__(self, platform, name, size):
        self.platform, self.name, self.size = platform, name, size
        self.service = platform.blobs(platform.storage.source)
        self.blob = self.service.get_blob_client(DISKS_CONTAINER, f"{name}.vhd")
        self.blob.create_page_blob(size)
        self.content = bytearray(size)
        self.moments = {}
        self.lease = None
        """The lease id that the guest writes with, while a machine has the disk."""

    def protect(self):
        self.platform.protect(self.name, f"{self.name}.vhd")
        return self

    def write(self, offset, data):
        for start in range(0, len(data), 4 * 1024 * 1024):
            piece = data[start : start + 4 * 1024 * 1024]
            self.blob.upload_page(piece, offset + start, len(piece), lease=self.lease)
        self.content[offset : offset + len(data)] = data

    def clear(self, offset, length):
        self.blob.clear_page(offset, length, lease=self.lease)
        self.content[offset : offset + length] = bytes(length)

    def moved(self, url):
        """The disk is another blob from now on."""
        self.blob = self.service.get_blob_client(DISKS_CONTAINER, url.rpartition("/")[2])

    def read(self):
        """The blob's bytes."""
        return self.blob.download_blob().readall()

    def disturb(self, rng, times):
        """Random writes and clears of random sizes."""
        for _ in range(times):
            offset = rng.randrange(self.size // PAGE) * PAGE
            length = min(rng.choice([1, 1, 2, 8, 100, 3000]) * PAGE, self.size - offset)
            if rng.random() < 0.65:
                self.write(offset, rng.choice([rng.randbytes(length), bytes(length)]))
            else:
                self.clear(offset, length)

    def back_up(self, **options):
        content = bytes(self.content)
        run = self.platform.back_up(self.name, **options)
        for point in run["restorePoints"]:
            self.moments[point] = content
        return run

    def points(self):
        return self.platform.points(self.name)

    def check_every_point(self):
        """Check that there is a restore point for each backup, and that its snapshot equals the disk's content at that time."""
        points = {point["id"]: point for point in self.points()}
        assert set(points) == set(self.moments)
        with self.platform.blobs(self.platform.storage.backup) as client:
            for name, point in points.items():
                snapshot = client.get_blob_client(
                    self.platform.settings["HEADS_CONTAINER"], point["blob"], snapshot=point["snapshot"]
                )
                assert snapshot.download_blob().readall() == self.moments[name], f"restore point {name} differs"

    def source_snapshots(self):
        container = self.service.get_container_client(DISKS_CONTAINER)
        return [
            one.snapshot
            for one in container.list_blobs(name_starts_with=self.blob.blob_name, include=["snapshots"])
            if one.snapshot
        ]

    def close(self):
        """Close the connections to the blob."""
        self.service.close()


class ManagedDisk(Disk):
    """A managed disk at LUN 0 of a running machine, whose guest writes into it. What is backed up is a VHD: the disk and a footer
    after it.
    """

    def __init__(self, platform, name, size, **made):
        self.platform, self.name, self.size, self.lease = platform, name, size + PAGE, None
        self.id = platform.managed_disk(name, data_bytes=size, machine=name, **made)
        self.blob = platform.managed_content(self.id)
        self.moments, self.disk_bytes = {}, size
        self.content = bytearray(self.read())

    def protect(self, **body):
        answer = self.platform.api("PUT", f"/disks/{self.name}", {"source": self.id, **body})
        assert answer.status_code in (200, 201), answer.text
        return self

    def disturb(self, rng, times):
        """Random writes and clears anywhere but in the footer, which is no part of the disk."""
        whole, self.size = self.size, self.disk_bytes
        super().disturb(rng, times)
        self.size = whole

    def grow(self, size):
        """The disk has so many bytes from now on."""
        self.platform.machines.grow_disk(self.id, size)
        self.size, self.disk_bytes = size + PAGE, size
        self.content = bytearray(self.read())

    def back_up(self, **options):
        run = self.platform.back_up(self.name, **options)
        # A run's row ends before the run releases the disk.
        self.platform.host.settled(run["id"])
        # The stand-in may have written another footer just before the snapshot.
        self.content[self.disk_bytes :] = self.blob.download_blob(self.disk_bytes, PAGE).readall()
        for point in run["restorePoints"]:
            self.moments[point] = bytes(self.content)
        return run

    def source_snapshots(self):
        return [one["name"] for one in self.snapshots()]

    def close(self):
        self.blob.close()

    @classmethod
    def adopted(cls, former, run):
        """The disk that a restore has made and adopted. It keeps the restore points of its predecessor."""
        self = cls.__new__(cls)
        self.platform, self.name, self.lease = former.platform, former.name, None
        self.id = run["restore"]["managedDisk"]
        self.blob = self.platform.managed_content(self.id)
        self.content = bytearray(self.read())
        self.size = len(self.content)
        self.disk_bytes = self.size - PAGE
        (point,) = run["restorePoints"]
        self.moments = {**former.moments, point: bytes(self.content)}
        return self

    def snapshots(self):
        """All snapshots of the disk, as Azure shows them."""
        found = self.platform.machines.snapshots()
        return [one for one in found if one["properties"]["creationData"]["sourceResourceId"].lower() == self.id.lower()]


def dump(storage, platform):
    """Blobs, snapshots, ETags and rows of the whole platform, except run rows."""
    found = {}
    for account in (storage.source, storage.backup):
        with platform.blobs(account) as client:
            for container in client.list_containers():
                for blob in client.get_container_client(container.name).list_blobs(include=["snapshots", "metadata"]):
                    lease = blob.lease.state if blob.lease else None
                    found[account.name, container.name, blob.name, blob.snapshot] = (blob.etag, blob.size, blob.metadata, lease)
    credential = AzureNamedKeyCredential(storage.state.name, storage.state.key)
    with TableServiceClient(storage.state.tables, credential=credential) as tables:
        for row in tables.get_table_client("pagekeeper").list_entities():
            if not row["RowKey"].startswith("run!"):
                found[row["PartitionKey"], row["RowKey"]] = (
                    row.metadata["etag"],
                    {key: str(value) for key, value in row.items()},
                )
    return found
