"""Faults on demand: what the real extension does to an app now and then, at the moment a test wants it.

    GET    /admin/devhost/faults   the rules, with what is left of their `skip` and `times`
    POST   /admin/devhost/faults   a list of rules, in place of those there are
    DELETE /admin/devhost/faults   no rules
    GET    /admin/devhost/queued?instances=PREFIX   how much is still to be done

A rule: {"fault": KIND, "instances": "prefix of ids", "name": "", "skip": 0, "times": 1, "seconds": 0, "late": false}
It is about the instances whose own id, or that of the instance at the top of all their parents, begins so.

| KIND | what happens | `name` |
|---|---|---|
| refuseCommit | an episode's messages go out, its history does not; it runs again after `seconds` | of the orchestrator |
| runTwice | two workers run the episode at once: both send their messages, one commits | of the orchestrator |
| repeatMessage | a message is delivered once more, `seconds` later | of the event, as in historyEvents |
| repeatActivity | an activity is run by two workers; the second begins `seconds` later | of the activity |
| holdAnswer | an activity's answer arrives `seconds` later | of the activity |
| holdChild | a child begins after the next one of its name was begun, and `seconds` later at the latest | of the orchestrator |

`late` waits, instead of `seconds`, for the end of the run: of the instance at the top of all parents. Of a refused commit, the
activities that were sent come late. The rules lie in the hub: all its workers follow them, and a restart does not lose them.
The n-th occurrence is `skip` = n - 1; which occurrence that is depends on nothing but the order in which things happen.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from aiohttp import web

if TYPE_CHECKING:
    from devhost.functions.hub import Hub

PATH, QUEUED_PATH = "/admin/devhost/faults", "/admin/devhost/queued"
KINDS = ("refuseCommit", "runTwice", "repeatMessage", "repeatActivity", "holdAnswer", "holdChild")


@dataclass
class Rule:
    """One rule, as above."""

    fault: str
    instances: str = ""
    name: str = ""
    skip: int = 0
    times: int = 1
    seconds: float = 0.0
    late: bool = False

    def meets(self, kind: str, instances: tuple[str, str], name: str) -> bool:
        """Whether it speaks of this occurrence, and is not used up; `instances` are the instance and the one at the top."""
        named = not self.name or self.name.lower() == name.lower()
        return self.fault == kind and self.times > 0 and named and any(one.startswith(self.instances) for one in instances)


class Faults:
    """The rules in a hub."""

    def __init__(self, hub: Hub) -> None:
        """Read and change the rules of `hub`."""
        self._hub = hub

    def met(self, kind: str, instance_id: str, name: str) -> Rule | None:
        """The rule that this occurrence falls under, which is one nearer to its end afterwards; None for the usual course."""
        for number, text in self._hub.rules():
            rule = Rule(**json.loads(text))
            if not rule.meets(kind, (instance_id, self._hub.root(instance_id)), name):
                continue
            due = rule.skip == 0
            rule.skip, rule.times = max(0, rule.skip - 1), rule.times - due
            self._hub.change_rule(number, json.dumps(asdict(rule)))
            if due:
                return rule
        return None

    async def handle(self, request: web.Request) -> web.Response:
        """Answer a call of the admin address."""
        if request.method == "GET":
            return web.json_response([json.loads(text) for _, text in self._hub.rules()])
        try:
            rules = [_checked(rule) for rule in await request.json()] if request.method == "POST" else []
        except (TypeError, ValueError) as error:
            return web.json_response({"error": str(error)}, status=400)
        with self._hub as hub:
            hub.replace_rules([json.dumps(asdict(rule)) for rule in rules])
        return web.json_response([asdict(rule) for rule in rules])

    async def queued(self, request: web.Request) -> web.Response:
        """Answer how much is still to be delivered."""
        return web.json_response(self._hub.queued(request.query.get("instances", ""), time.time()))


def _checked(given: dict[str, Any]) -> Rule:
    known = [one.name for one in fields(Rule)]
    if unknown := set(given) - set(known):
        message = f"unknown fields {sorted(unknown)}; known: {known}"
        raise ValueError(message)
    if given.get("fault") not in KINDS:
        message = f"fault is {given.get('fault')!r}; known: {list(KINDS)}"
        raise ValueError(message)
    return Rule(**given)
