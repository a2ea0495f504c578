"""Account failovers: the parts of an account come back as they were at earlier moments, each at one of its own."""

from __future__ import annotations

import copy

from tests.scene import BACKUP, SOURCE

PARTS = ("heads", "documents", "rows", "claims", "source")


class Replicas:
    """What a secondary region has: a copy of each part after each of its changes.

    Azure copies each part in the order of its changes, at a pace of its own: only what is older than the last sync time is there for
    certain (Azure storage disaster recovery planning and failover).
    """

    def __init__(self, scene):
        self._scene = scene
        self.copies = {part: [] for part in PARTS}
        self.truth = {}
        """Source snapshot to what the disk had when it was taken."""
        self.follow()

    def follow(self):
        """Copy each part that has changed."""
        for name, snapshot in self._scene.blobs.blobs[self._scene.source()].snapshots.items():
            self.truth.setdefault(name, snapshot.content())
        for part, copies in self.copies.items():
            present = self._state(part)
            if not copies or copies[-1] != present:
                copies.append(copy.deepcopy(present))

    def fail_over(self, choose, parts, *, leases):
        """Give each of the parts the state that `choose` takes of its copies, oldest first; without `leases` those have ended."""
        for part in parts:
            self._put(part, copy.deepcopy(choose(self.copies[part])))
        if not leases:
            for blob in self._scene.blobs.blobs.values():
                blob.lease = ""

    def _state(self, part):
        catalogue, documents = self._scene.catalogue, self._scene.documents
        match part:
            case "heads" | "source":
                account, container = (BACKUP, "heads") if part == "heads" else (SOURCE, "vhds")
                blobs = self._scene.blobs.blobs
                return {at: blob for at, blob in blobs.items() if (at.account, at.container) == (account, container)}
            case "documents":
                return documents.texts, documents.changed
            case "rows":
                return catalogue.rows
            case _:
                return catalogue.claimed

    def _put(self, part, state):
        catalogue, documents = self._scene.catalogue, self._scene.documents
        match part:
            case "heads" | "source":
                for at in self._state(part):
                    del self._scene.blobs.blobs[at]
                self._scene.blobs.blobs.update(state)
            case "documents":
                documents.texts, documents.changed = state
            case "rows":
                catalogue.rows = state
            case _:
                catalogue.claimed = state
