"""Rebuilds of the catalogue as their callers see them: one at a time, each after a dry run, ended when dead."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from backup_core.domain.ending import HEARTBEAT_MAX
from backup_core.domain.naming import REBUILD_AT_WORK, rebuild_name, rebuild_of_stamp
from backup_core.domain.rebuild import Rebuild
from backup_core.operations.refusal import RefusedError
from backup_core.protocol.rebuilds import AT_WORK, HASH_LENGTH, at_work, store_rebuild, stored_rebuild

if TYPE_CHECKING:
    from backup_core.protocol.tools import Tools


async def dry_run_of(tools: Tools, plan_hash: str | None) -> str:
    """The dry run with that hash. Raises RefusedError."""
    if not plan_hash:
        message = "planHash is missing; make a dry run first, look at what it would do, and present its planHash"
        raise RefusedError(400, "DryRunFirst", message, "planHash")
    plan = rebuild_of_stamp(plan_hash[HASH_LENGTH:])
    known = await stored_rebuild(tools, plan) if plan else None
    if known is None or known.plan_hash != plan_hash:
        message = "no dry run has this hash; nothing was written; make a new one"
        raise RefusedError(412, "PlanChanged", message, "planHash")
    return known.rebuild


async def rebuild_at_work(tools: Tools) -> str:
    """The rebuild that is running; empty when there is none. One that is dead is ended."""
    rebuild = await at_work(tools)
    known = await end_rebuild_if_dead(tools, rebuild) if rebuild else None
    return rebuild if known and known.state == "Running" else ""


async def end_rebuild_if_dead(tools: Tools, rebuild: str) -> Rebuild | None:
    """What is kept of the rebuild; one that gave no sign of life for HEARTBEAT_MAX is ended here."""
    known = await stored_rebuild(tools, rebuild)
    if known and known.state == "Running":
        changed = [one.changed async for one in tools.documents.listed(rebuild_name(rebuild))]
        now = await tools.catalogue.now()
        if changed and now - changed[0] > HEARTBEAT_MAX:
            known = replace(known, state="Failed", ended=now)
            await store_rebuild(tools, known)
    return known


async def enter_rebuild(tools: Tools, name: str, plan: str) -> Rebuild:
    """Store the rebuild as the one that may act; `plan` is its dry run, empty for a dry run. Of two calls at once the later one
    has its way: the steps of the other find that they may not act.
    """
    rebuild = Rebuild(name, "Running", await tools.catalogue.now(), plan)
    await store_rebuild(tools, rebuild)
    await tools.documents.put(REBUILD_AT_WORK, AT_WORK.dump_json(rebuild.rebuild).decode())
    return rebuild


async def fail_rebuild(tools: Tools, rebuild: Rebuild) -> None:
    """Store that the rebuild could not be started."""
    await store_rebuild(tools, replace(rebuild, state="Failed", ended=await tools.catalogue.now()))
