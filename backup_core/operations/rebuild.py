"""Rebuilds of the catalogue for callers: one at a time, each after a dry run; abandoned ones are ended."""

from __future__ import annotations

import secrets
from dataclasses import replace
from typing import TYPE_CHECKING

from backup_core.domain.ending import HEARTBEAT_MAX
from backup_core.domain.naming import (
    REBUILD_AT_WORK,
    is_rebuild_id,
    rebuild_cancel_name,
    rebuild_id,
    rebuild_name,
    rebuild_of_stamp,
    rebuilt_folder,
)
from backup_core.domain.rebuild import Rebuild
from backup_core.operations.refusal import RefusedError
from backup_core.protocol.documents import read_document
from backup_core.protocol.rebuilds import AT_WORK, FOUND, HASH_LENGTH, at_work, store_rebuild, stored_rebuild
from backup_core.steps.rebuild import RebuildRequest

START_REBUILD = "rebuild_catalogue"

if TYPE_CHECKING:
    from backup_core.domain.rebuild import Found
    from backup_core.operations.runs import Start
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


async def begin_rebuild(tools: Tools, start: Start, plan_hash: str | None, *, dry_run: bool) -> Rebuild:
    """A rebuild, stored and started: a dry run, or one that carries out the dry run of that hash. Raises RefusedError."""
    plan = "" if dry_run else await dry_run_of(tools, plan_hash)
    if running := await _check_present_rebuild(tools):
        raise RefusedError(409, "RebuildRunning", f"rebuild {running} is in progress", follow=f"catalogue/rebuilds/{running}")
    rebuild = await _enter_rebuild(tools, rebuild_id(await tools.catalogue.now(), secrets.token_hex(4)), plan)
    wanted = RebuildRequest(rebuild=rebuild.rebuild, plan=plan)
    try:
        await start(START_REBUILD, rebuild.rebuild, wanted.model_dump(mode="json"))
    except Exception:
        await store_rebuild(tools, replace(rebuild, state="Failed", ended=await tools.catalogue.now()))
        raise
    return rebuild


async def _check_present_rebuild(tools: Tools) -> str:
    """End the present rebuild if it is abandoned; its id if it is still running, else empty."""
    rebuild = await at_work(tools)
    known = await end_rebuild_if_dead(tools, rebuild) if rebuild else None
    return rebuild if known and known.state == "Running" else ""


async def check_rebuild(tools: Tools, name: str) -> Rebuild:
    """End the rebuild if it is abandoned; its stored state then. Raises RefusedError for an unknown one."""
    known = await end_rebuild_if_dead(tools, name) if is_rebuild_id(name) else None
    if known is None:
        message = f"no rebuild {name[:80]!r} is known; POST /api/catalogue/rebuild begins one"
        raise RefusedError(404, "RebuildNotFound", message, "rebuild")
    return known


async def end_rebuild_if_dead(tools: Tools, rebuild: str) -> Rebuild | None:
    """End the rebuild if it wrote nothing for HEARTBEAT_MAX; its stored state then, None for an unknown one."""
    known = await stored_rebuild(tools, rebuild)
    if known and known.state == "Running":
        changed = [one.changed async for one in tools.documents.listed(rebuild_name(rebuild))]
        now = await tools.catalogue.now()
        if changed and now - changed[0] > HEARTBEAT_MAX:
            known = replace(known, state="Failed", ended=now)
            await store_rebuild(tools, known)
    return known


async def found_of(tools: Tools, rebuild: str, after: str, top: int) -> tuple[list[Found], str | None]:
    """Findings of the rebuild, at most `top` parts that follow the part `after`; and the last one's name if there are more."""
    folder = rebuilt_folder(rebuild)
    names = [one.name async for one in tools.documents.listed(folder) if one.name > f"{folder}{after}.json" or not after]
    texts = [(name, await tools.documents.get(name)) for name in names[:top]]
    last = names[top - 1].removeprefix(folder).removesuffix(".json") if len(names) > top else None
    return [read_document(FOUND, name, text) for name, text in texts if text], last


async def cancel_rebuild(tools: Tools, known: Rebuild) -> None:
    """Store that the rebuild is to end. Raises RefusedError for one that has ended, unless as canceled."""
    if known.state in ("Succeeded", "Failed"):
        message = f"rebuild {known.rebuild} has ended as {known.state}"
        raise RefusedError(409, "RebuildEnded", message, "rebuild")
    if known.state != "Canceled":
        await tools.documents.put(rebuild_cancel_name(known.rebuild), "{}")


async def _enter_rebuild(tools: Tools, name: str, plan: str) -> Rebuild:
    """Store the rebuild as the one that may act; `plan` is its dry run, empty for a dry run. Of two calls at once the later one
    is stored last, and the steps of the other are refused.
    """
    rebuild = Rebuild(name, "Running", await tools.catalogue.now(), plan)
    await store_rebuild(tools, rebuild)
    await tools.documents.put(REBUILD_AT_WORK, AT_WORK.dump_json(rebuild.rebuild).decode())
    return rebuild
