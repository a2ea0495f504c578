"""Ids of actors: made from the acting instance and its purpose, never from a clock or by chance.

An episode of an orchestration may run twice, minutes apart, and the calls of the first time continue beside those of the
second time. Both have to be the same actor, and so need the same lease and the same ids.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal
from uuid import UUID, uuid5

from backup_core.domain.naming import account_name

INSTANCE_ID_LENGTH_MAX = 100
"""Characters of an instance id that Durable Functions promises to take."""
CHILD = "~"
"""Begins what is added to a parent's id. No id that is started from outside has it."""
_LEASES = UUID("6f1d5b0e-6f0a-4d59-9a0e-6b1f4f3d2c11")
"""The namespace of our lease ids. Never changed: runs in flight would lose their own leases."""

LeasePurpose = Literal["run", "recovery", "cleanup"]
ChildPurpose = Literal["delivery", "head", "lane"]
"""The purpose of a sub-orchestration. Each begins with a letter of its own, which stands for it in the id:

`delivery` the new disk of a restore; `head` the head it promotes; `lane` some of a window's disks, one after another. Only what
is begun from outside, and so once, names its children; all others have the extension's ids: see `sub_orchestration`.
"""


def lease_id(instance: str, purpose: LeasePurpose, of: str) -> str:
    """The lease that an orchestration instance takes for a purpose: a GUID. `of` is the run or disk that it is for.

    The same in every life of the instance. Another instance that is handed the same run gets another one: two orchestrations of
    one run exclude each other.
    """
    # Neither an instance's id nor a run's has a slash.
    # G5: the same actor has the same lease, however often its episode runs.
    return str(uuid5(_LEASES, f"{instance}/{purpose}/{of}"))


def child_id(parent: str, purpose: ChildPurpose, attempt: int = 1) -> str:
    """The instance id of a sub-orchestration. `attempt` counts what a parent starts for the purpose, in all its executions.

    ValueError for an id that is longer than Durable Functions takes.
    """
    # G5: from the parent's id, the purpose and the attempt alone.
    child = f"{parent}{CHILD}{purpose[0]}{attempt}"
    if len(child) > INSTANCE_ID_LENGTH_MAX:
        message = f"instance id {child} has {len(child)} characters, {INSTANCE_ID_LENGTH_MAX} are allowed"
        raise ValueError(message)
    return child


def catalogue_name(endpoint: str, table: str) -> str:
    """The name of a catalogue, `account/table`: the same however the endpoint is spelt. Table names know no case."""
    return f"{account_name(endpoint)}/{table}".lower()


@dataclass(frozen=True)
class Deployment:
    """One installation of this app. Its catalogue is its identity: two apps over one catalogue are one deployment."""

    catalogue: str
    """As `catalogue_name` gives it. What the deployment writes on blobs carries it."""
    former: frozenset[str] = frozenset()
    """Catalogues, now lost or retired, that this one succeeds: their marks count as its own."""

    def wrote(self, catalogue: str) -> bool:
        """Whether a mark that names that catalogue is this deployment's own."""
        # G17: marks of other deployments count nowhere.
        return catalogue == self.catalogue or catalogue in self.former
