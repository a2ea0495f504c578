"""The rebuild of the catalogue: every disk, a few side by side, each alone: one that cannot be read stops no other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from backup_core.domain.digests import digest_of
from backup_core.domain.shown import named, shortened
from backup_core.orchestrations.calls import PAUSES, Flow, Retries, StepFailedError, attempt, call, now, show
from backup_core.orchestrations.kit import begin_anew
from backup_core.steps.messages import Fault
from backup_core.steps.rebuild import (
    FINISH_REBUILD,
    LIST_REBUILD_DISKS,
    REBUILD_DISK,
    REPORT_REBUILD,
    FinishRebuild,
    RebuildDisk,
    RebuildDiskResult,
    RebuildPage,
    RebuildReport,
    RebuildRequest,
)

if TYPE_CHECKING:
    from backup_core.orchestrations.calls import Context

NAME = "rebuild_catalogue"
SIDE_BY_SIDE = 8
CALLS_PER_EXECUTION = 200
"""After so many calls of parts the instance continues as new, so that its history stays small."""
_State = Literal["Succeeded", "Failed", "Canceled"]


LOST = Fault(code="AnswerLost", message="it was answered by what was found for another disk or part", retryable=True)


class RebuildFailedError(Exception):
    """At least one disk could not be rebuilt, or was not as the dry run had shown it; all others were. The text names some."""


def rebuild_catalogue(context: Context) -> Flow[dict[str, Any] | None]:
    """The orchestrator. Returns counts; raises when a disk failed, after all were tried."""
    rebuilding = _Rebuilding(context, RebuildRequest.model_validate(context.get_input()))
    try:
        state = yield from rebuilding.flow()
    except StepFailedError as failed:
        rebuilding.tally = rebuilding.tally.with_disk((), f"the list of disks: {failed.fault.code}: {failed.fault.message}")
        state = "Failed"
    if state is None:
        return None
    tally = rebuilding.tally
    request = FinishRebuild(rebuild=rebuilding.request.rebuild, state=state, tally=tally, chain=rebuilding.chain)
    yield from call(context, FINISH_REBUILD, request, Retries())
    if state == "Failed":
        message = f"{tally.failed} disks failed, {tally.changed} were not as the dry run had shown them: {named(tally.names)}"
        raise RebuildFailedError(message)
    return {"state": state, "examined": tally.examined, "different": tally.different}


def _is_answer(request: RebuildDisk, answer: RebuildDiskResult) -> bool:
    """Whether the answer is this call's: a second life may get the answer to another call of the first life with the same
    number.
    """
    return (answer.disk, answer.part) == (request.disk, request.part)


class _Rebuilding:
    """One execution of the orchestrator."""

    def __init__(self, context: Context, request: RebuildRequest) -> None:
        self.context, self.request = context, request
        self.tally, self.chain, self.after = request.tally, request.chain, request.after
        self.calls = 0

    def flow(self) -> Flow[_State | None]:
        """The tally of all disks after the request's; None when it continues as a new execution."""
        page = yield from call(
            self.context, LIST_REBUILD_DISKS, RebuildPage(rebuild=self.request.rebuild, after=self.after), Retries()
        )
        for first in range(0, len(page.disks), SIDE_BY_SIDE):
            report = RebuildReport(rebuild=self.request.rebuild, tally=self.tally)
            reported = yield from call(self.context, REPORT_REBUILD, report, Retries())
            show(self.context, {"examined": self.tally.examined, "different": self.tally.different, "after": self.after})
            if not reported.goes_on:
                return "Canceled"
            disks = page.disks[first : first + SIDE_BY_SIDE]
            yield from self._side_by_side(disks)
            self.after = disks[-1]
            if self.calls >= CALLS_PER_EXECUTION:
                break
        if page.more or (page.disks and self.after != page.disks[-1]):
            checkpoint = {"after": self.after, "tally": self.tally, "chain": self.chain}
            begin_anew(self.context, self.request.model_copy(update=checkpoint))
            return None
        return "Failed" if self.tally.failed or self.tally.changed else "Succeeded"

    def _side_by_side(self, disks: list[str]) -> Flow[None]:
        """The results of each part of each disk."""
        states: dict[str, list[str]] = {disk: [] for disk in disks}
        digests: dict[str, list[str]] = {disk: [] for disk in disks}
        faults: dict[str, str] = {}
        open_ = {disk: RebuildDisk(rebuild=self.request.rebuild, plan=self.request.plan, disk=disk) for disk in disks}
        while open_:
            answers = yield from self._answered(open_, faults)
            open_ = {disk: open_[disk] for disk in answers}
            for disk, answer in answers.items():
                states[disk].append(answer.state)
                digests[disk] += [answer.digest] if answer.digest else []
                following = {"part": open_[disk].part + 1, "below": answer.below}
                open_[disk] = open_[disk].model_copy(update=following)
            open_ = {disk: request for disk, request in open_.items() if request.below}
        for disk in disks:
            self.tally = self.tally.with_disk(states[disk], faults.get(disk, ""))
            for digest in digests[disk]:
                self.chain = digest_of(f"{self.chain} {disk} {digest}")

    def _answered(self, open_: dict[str, RebuildDisk], faults: dict[str, str]) -> Flow[dict[str, RebuildDiskResult]]:
        """The result of each disk's next part; permanent failures are put into `faults`."""
        answers: dict[str, RebuildDiskResult] = {}
        pauses = iter(PAUSES)
        while True:
            left = [disk for disk in open_ if disk not in answers and disk not in faults]
            if not left:
                return answers
            self.calls += len(left)
            outcomes = yield from attempt(self.context, REBUILD_DISK, [open_[disk] for disk in left])
            pause = next(pauses, None)
            waits = False
            for disk, outcome in zip(left, outcomes, strict=True):
                fault = outcome.fault or LOST
                if outcome.value and _is_answer(open_[disk], answer := RebuildDiskResult.model_validate(outcome.value)):
                    answers[disk] = answer
                elif fault.retryable and pause is not None:
                    waits = True
                else:
                    faults[disk] = shortened(f"{disk}: {fault.code}: {fault.message}")
            if waits and pause is not None:
                yield self.context.create_timer(now(self.context) + pause)
