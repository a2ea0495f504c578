"""The owner of a container of the backup account: a document in it names the catalogue, and other deployments are refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from backup_core.domain.errors import ContainerTakenError
from backup_core.protocol.documents import read_document

if TYPE_CHECKING:
    from backup_core.domain.identity import Deployment
    from backup_core.ports import Documents

CLAIM = "catalogue.json"
"""The document's name. All others lie in a folder."""
_HOLDER = TypeAdapter(dict[str, str])


async def claim_container(documents: Documents, container: str, deployment: Deployment) -> None:
    """Claim the container for the deployment's catalogue, if it names none or a former one.

    Of two that claim at the same moment one is refused. Raises ContainerTakenError when it names another.
    """
    mine = _HOLDER.dump_json({"catalogue": deployment.catalogue}).decode()
    stored = await documents.get(CLAIM)
    if stored is None:
        await documents.put_if_absent(CLAIM, mine)
    elif _holder(container, stored) in deployment.former:
        # G18: only in place of what was read: another app may take over the same former catalogue at this moment.
        await documents.replace(CLAIM, mine, former=stored)
    # Read again: the store has decided who holds it.
    holder = _holder(container, await documents.get(CLAIM) or "{}")
    # G18: two catalogues over one container would delete each other's blobs.
    if holder != deployment.catalogue:
        message = (
            f"container {container}: it belongs to catalogue {holder!r}, this app's is {deployment.catalogue!r}; nothing was "
            "done; give this app containers of its own (HEADS_CONTAINER, PLANS_CONTAINER), or, when that catalogue is lost or "
            "given up for good, name it in FORMER_CATALOGUES and rebuild"
        )
        raise ContainerTakenError(message)


def _holder(container: str, stored: str) -> str:
    """The catalogue that the document names."""
    return read_document(_HOLDER, f"{container}/{CLAIM}", stored).get("catalogue", "")
