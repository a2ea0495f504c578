"""Draws the rules of a restore as state diagrams: `python -m tools.diagrams` writes docs/restore-rules.md."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from backup_core.domain.disk_restore import Copied, RestoreGoals
from backup_core.domain.machine_change import Seen
from tools.rules import CHANGE, DELIVERY, RESTORE, Rule, transitions

DOCUMENT = Path(__file__).parent.parent / "docs" / "restore-rules.md"
TEXT = """# The rules of a restore, drawn

Made by `python -m tools.diagrams` from the rules themselves; a test holds this page to them. A box is a step, an arrow one or
more results of it. An arrow without words is taken whatever the result. The tests under `tests/domain` go through every state
behind these boxes.

## The restore

`restore_disk` takes the steps that `backup_core/domain/disk_restore.py` names. Every way ends by `finish`, unless the run had
ended before. What a failed step leads to depends on what is known: nothing is removed before the registration follows a machine
that has the new disk, and a complete disk is never removed.

{restore}
## The delivery of the new disk

`deliver_disk` takes the steps of `backup_core/domain/disk_delivery.py`. `stopped` means that another part of the run has
failed.

{delivery}
## The change of the machine

`repoint_machine` takes the steps of `backup_core/domain/machine_change.py`. The machine has the new disk, the old one, none
(`nothing`), or one that somebody else gave it (`other`). A `temporary` failure may pass; a `final` one does not.

{own}
The same rule resolves a change that an abandoned run left. The first look decides: forward where the machine has the new disk,
back where it does not.

{abandoned}"""


def mermaid(rule: Rule, box: Callable[[Any, str], str], words: Callable[[Any], str]) -> str:
    """The diagram of a rule. `box` names the box of a state's step, `words` says a result. The order of lines is fixed."""
    arrows: dict[tuple[str, str], set[str]] = defaultdict(set)
    for start in rule.starts:
        arrows["", box(start, rule.next_step(start))] = set()
    for one in transitions(rule):
        if one.after is not None:
            following = rule.next_step(one.after)
            arrows[box(one.before, one.step), "" if following == "end" else box(one.after, following)].add(words(one.result))
    ways = Counter(source for source, _ in arrows)
    boxes = sorted({target for _, target in arrows} - {""})
    lines = ["```mermaid", "stateDiagram-v2", *(f'    state "{name}" as {_id(name)}' for name in boxes)]
    for (source, target), results in sorted(arrows.items()):
        said = f" : {', '.join(sorted(results))}" if results and ways[source] > 1 else ""
        lines.append(f"    {_id(source)} --> {_id(target)}{said}")
    return "\n".join([*lines, "```", ""])


def _id(box: str) -> str:
    # A prefix, because words like "end" and "note" mean something else there.
    return f"step_{box.replace(' ', '_')}" if box else "[*]"


def _result_words(result: Any) -> str:  # noqa: ANN401  any rule's result
    match result:
        case RestoreGoals():
            return "begun"
        case Copied():
            return result.delivered if result.delivered != "success" else f"head {result.promoted or 'not wanted'}"
        case Seen(reached=True):
            return "goal read back"
        case Seen(move="wait"):
            return "being changed"
        case Seen(move="none"):
            return f"has {result.holds}"
        case Seen():
            return "moved"
    return str(result)


def document() -> str:
    """The page, as the rules are now."""
    own, abandoned = (
        replace(CHANGE, starts=tuple(one for one in CHANGE.starts if one.abandoned is left)) for left in (False, True)
    )

    def towards(state: Any, step: str) -> str:  # noqa: ANN401  a state of the change
        return f"{step} {state.goal}" if step in ("move", "report") and state.goal else step

    def plain(_: Any, step: str) -> str:  # noqa: ANN401  any rule's state
        return step

    return TEXT.format(
        restore=mermaid(RESTORE, plain, _result_words),
        delivery=mermaid(DELIVERY, plain, _result_words),
        own=mermaid(own, towards, _result_words),
        abandoned=mermaid(abandoned, towards, _result_words),
    )


if __name__ == "__main__":
    DOCUMENT.write_text(document())
