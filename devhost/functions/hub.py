# Long: every statement over one database file.
"""The task hub: instances, their history, messages (with timers) and activity work, in one SQLite file.

Several processes may use one file. What is taken from it, a message or an activity, is invisible until the taker's time is up.
"""

from __future__ import annotations

import json
import math
import sqlite3
import uuid
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from devhost.functions import protocol
from devhost.functions.protocol import TERMINAL, Event

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

SCHEMA = """
CREATE TABLE IF NOT EXISTS instances(
  id TEXT PRIMARY KEY, execution TEXT NOT NULL, name TEXT NOT NULL, version TEXT, status TEXT NOT NULL,
  input TEXT, output TEXT, custom_status TEXT, created TEXT NOT NULL, updated TEXT NOT NULL,
  parent TEXT, parent_execution TEXT, parent_task INTEGER);
CREATE TABLE IF NOT EXISTS history(
  id TEXT, position INTEGER, event TEXT NOT NULL, PRIMARY KEY(id, position)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS messages(
  number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL, execution TEXT, visible_at REAL NOT NULL,
  event TEXT NOT NULL, late TEXT, copy INTEGER NOT NULL DEFAULT 0);
CREATE INDEX IF NOT EXISTS messages_by_instance ON messages(id, number);
CREATE INDEX IF NOT EXISTS messages_by_time ON messages(visible_at);
CREATE TABLE IF NOT EXISTS work(
  number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL, execution TEXT NOT NULL, task INTEGER NOT NULL,
  name TEXT NOT NULL, input TEXT, visible_at REAL NOT NULL DEFAULT 0, worker TEXT,
  late TEXT, copy INTEGER NOT NULL DEFAULT 0);
CREATE INDEX IF NOT EXISTS late_messages ON messages(late) WHERE late IS NOT NULL;
CREATE INDEX IF NOT EXISTS late_work ON work(late) WHERE late IS NOT NULL;
CREATE TABLE IF NOT EXISTS faults(number INTEGER PRIMARY KEY AUTOINCREMENT, rule TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS work_by_time ON work(visible_at);
CREATE TABLE IF NOT EXISTS workers(name TEXT PRIMARY KEY, until REAL NOT NULL);
CREATE TABLE IF NOT EXISTS timer_status(name TEXT PRIMARY KEY, status TEXT NOT NULL);
"""

BUSY_SECONDS = 30.0
"""How long a transaction waits for another process's."""
NEVER = 1e15
"""The visibility of messages that wait for a run's end."""
WORK = "number, id, execution, task, name, input, copy"


@dataclass(frozen=True)
class Instance:
    """One orchestration instance as the hub knows it; JSON columns are raw text."""

    id: str
    execution: str
    name: str
    version: str | None
    status: str
    input: str | None
    output: str | None
    custom_status: str | None
    created: str
    updated: str
    parent: str | None
    parent_execution: str | None
    parent_task: int | None

    @property
    def ended(self) -> bool:
        """Whether the instance is in a terminal state."""
        return self.status in TERMINAL


@dataclass(frozen=True)
class Work:
    """An activity to run for one task of one execution."""

    number: int
    id: str
    execution: str
    task: int
    name: str
    input: str | None
    copy: bool = False
    """Whether it is a repetition that a rule for faults made; none is repeated again."""


class Hub:
    """The store. Used from one thread; `with hub:` is one transaction."""

    def __init__(self, path: Path | str) -> None:
        """Open or create the hub at `path`."""
        self.db = sqlite3.connect(path, isolation_level=None, timeout=BUSY_SECONDS)
        self.db.row_factory = sqlite3.Row
        self.db.execute("PRAGMA journal_mode=WAL")
        # NORMAL loses nothing when the process is killed; only a power cut could undo the last transactions.
        self.db.execute("PRAGMA synchronous=NORMAL")
        self.db.executescript(SCHEMA)
        self._version = 0

    def close(self) -> None:
        """Close the file."""
        self.db.close()

    def __enter__(self) -> Self:
        """Begin a transaction."""
        self.db.execute("BEGIN IMMEDIATE")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Commit, or roll back when the block raised."""
        self.db.execute("ROLLBACK" if kind else "COMMIT")

    # -- reading ------------------------------------------------------------------------------------

    def instance(self, instance_id: str) -> Instance | None:
        """The instance, or None."""
        row = self.db.execute("SELECT * FROM instances WHERE id=?", (instance_id,)).fetchone()
        return Instance(**dict(row)) if row else None

    def instances(self) -> list[Instance]:
        """All instances, oldest first."""
        return [Instance(**dict(row)) for row in self.db.execute("SELECT * FROM instances ORDER BY created, id")]

    def history(self, instance_id: str) -> list[str]:
        """The instance's history, each event as JSON text."""
        rows = self.db.execute("SELECT event FROM history WHERE id=? ORDER BY position", (instance_id,))
        return [row["event"] for row in rows]

    def messages(self, instance_id: str, visible_until: float) -> list[sqlite3.Row]:
        """Messages of the instance that are visible at `visible_until` (POSIX seconds), in order of arrival."""
        return self.db.execute(
            "SELECT * FROM messages WHERE id=? AND visible_at<=? ORDER BY number", (instance_id, visible_until)
        ).fetchall()

    def length(self, instance_id: str) -> int:
        """Number of events in the instance's history."""
        row = self.db.execute("SELECT MAX(position) AS last FROM history WHERE id=?", (instance_id,)).fetchone()
        return 0 if row["last"] is None else int(row["last"]) + 1

    def has_changed(self) -> bool:
        """Whether another process has written since the last call."""
        (version,) = self.db.execute("PRAGMA data_version").fetchone()
        before, self._version = self._version, version
        return bool(version != before)

    def readable(self, now: float) -> list[str]:
        """The instances with messages that are visible."""
        return [row["id"] for row in self.db.execute("SELECT DISTINCT id FROM messages WHERE visible_at<=?", (now,))]

    def visible_work(self, now: float) -> list[Work]:
        """Activities that nobody has taken, or whose taker's time is up, oldest first."""
        rows = self.db.execute(f"SELECT {WORK} FROM work WHERE visible_at<=? ORDER BY number", (now,))  # noqa: S608  fixed names
        return [Work(**dict(row)) for row in rows]

    def next_visible(self, now: float) -> float:
        """When the next message or activity becomes visible, in POSIX seconds; infinity when none will."""
        found = [
            self.db.execute(f"SELECT MIN(visible_at) FROM {table} WHERE visible_at>?", (now,)).fetchone()[0]  # noqa: S608  fixed names
            for table in ("messages", "work")
        ]
        return min((moment for moment in found if moment is not None), default=math.inf)

    def is_unchanged(self, instance: Instance, length: int) -> bool:
        """Whether the instance lives, is the same execution, and its history has that many events."""
        present = self.instance(instance.id)
        same = present is not None and not present.ended and present.execution == instance.execution
        return same and self.length(instance.id) == length

    def root(self, instance_id: str) -> str:
        """The instance at the top of all parents."""
        while (found := self.instance(instance_id)) and found.parent:
            instance_id = found.parent
        return instance_id

    def queued(self, prefix: str, now: float) -> dict[str, int]:
        """Number of activities and of messages to be done for instances below `prefix`. An instance is below it when its id, or
        the id at the top of all its parents, begins with `prefix`.

        That is every activity, and each message that is visible or waits for a run's end; no timer that is not due.
        """
        rows_by_kind = {
            "work": self.db.execute("SELECT id FROM work"),
            "messages": self.db.execute("SELECT id FROM messages WHERE visible_at<=? OR late IS NOT NULL", (now,)),
        }
        return {
            what: sum(row["id"].startswith(prefix) or self.root(row["id"]).startswith(prefix) for row in rows)
            for what, rows in rows_by_kind.items()
        }

    def rules(self) -> list[tuple[int, str]]:
        """Number and JSON of the rules for faults."""
        return [(row["number"], row["rule"]) for row in self.db.execute("SELECT number, rule FROM faults ORDER BY number")]

    # -- writing, inside a transaction --------------------------------------------------------------

    def post(
        self,
        instance_id: str,
        event: Event,
        *,
        execution: str | None = None,
        visible_at: float = 0.0,
        late: str | None = None,
        copy: bool = False,
    ) -> None:
        """Send a message; one for a named execution is ignored by any other. It waits for the end of instance `late`."""
        self.db.execute(
            "INSERT INTO messages(id, execution, visible_at, event, late, copy) VALUES(?,?,?,?,?,?)",
            (instance_id, execution, NEVER if late else visible_at, json.dumps(event), late, copy),
        )

    def take_messages(self, instance_id: str, now: float, until: float) -> list[sqlite3.Row]:
        """The instance's visible messages, from now on invisible until `until`."""
        rows = self.messages(instance_id, now)
        self.hide_messages([row["number"] for row in rows], until)
        return rows

    def hide_messages(self, numbers: Iterable[int], until: float) -> None:
        """Make messages invisible until `until`; those that are gone stay gone."""
        self.db.executemany("UPDATE messages SET visible_at=? WHERE number=?", [(until, number) for number in numbers])

    def take_work(self, number: int, worker: str, now: float, until: float) -> bool:
        """Make the activity invisible until `until`, as `worker`'s; False when it is gone or another has it."""
        request = "UPDATE work SET visible_at=?, worker=? WHERE number=? AND visible_at<=?"
        return self.db.execute(request, (until, worker, number, now)).rowcount == 1

    def hold_work(self, numbers: Iterable[int], worker: str, until: float) -> None:
        """Prolong what `worker` has taken."""
        request = "UPDATE work SET visible_at=? WHERE number=? AND worker=?"
        self.db.executemany(request, [(until, number, worker) for number in numbers])

    def beat(self, worker: str, now: float, until: float) -> list[str]:
        """Count `worker` among the living until `until`; the names of all who live at `now`, in order."""
        self.db.execute("INSERT OR REPLACE INTO workers VALUES(?,?)", (worker, until))
        self.db.execute("DELETE FROM workers WHERE until<=?", (now,))
        return [row["name"] for row in self.db.execute("SELECT name FROM workers ORDER BY name")]

    def leave(self, worker: str) -> None:
        """Count `worker` among the living no longer."""
        self.db.execute("DELETE FROM workers WHERE name=?", (worker,))

    def release_late(self) -> None:
        """Make the messages visible that waited for the end of runs that have ended."""
        for table in ("messages", "work"):
            for (late,) in self.db.execute(f"SELECT DISTINCT late FROM {table} WHERE late IS NOT NULL").fetchall():  # noqa: S608  fixed names
                awaited = self.instance(late)
                if awaited is None or awaited.ended:
                    self.db.execute(f"UPDATE {table} SET late=NULL, visible_at=0 WHERE late=?", (late,))  # noqa: S608  fixed names

    def change_rule(self, number: int, rule: str) -> None:
        """Replace one rule for faults."""
        self.db.execute("UPDATE faults SET rule=? WHERE number=?", (rule, number))

    def replace_rules(self, rules: Iterable[str]) -> None:
        """Replace all rules for faults."""
        self.db.execute("DELETE FROM faults")
        self.db.executemany("INSERT INTO faults(rule) VALUES(?)", [(rule,) for rule in rules])

    def consume(self, numbers: Iterable[int]) -> None:
        """Delete read messages."""
        self.db.executemany("DELETE FROM messages WHERE number=?", [(number,) for number in numbers])

    def create(
        self,
        instance_id: str,
        name: str,
        raw_input: str | None,
        version: str | None,
        parent: tuple[str, str, int] | None = None,
    ) -> None:
        """Create an instance, replacing a finished one of the same id, with its start message."""
        execution, moment = uuid.uuid4().hex, protocol.now()
        self.db.execute("DELETE FROM history WHERE id=?", (instance_id,))
        self.db.execute(
            "INSERT OR REPLACE INTO instances VALUES(?,?,?,?,?,?,?,?,?,?,?,?,?)",
            (instance_id, execution, name, version, "Pending", raw_input, None, None, moment, moment, *(parent or (None,) * 3)),
        )
        started = protocol.execution_started(instance_id, execution, name, raw_input, version, parent)
        self.post(instance_id, started, execution=execution)

    def restart(self, instance: Instance, raw_input: str, custom_status: str | None) -> None:
        """Continue as new: a fresh execution of the same instance with an empty history."""
        execution = uuid.uuid4().hex
        self.db.execute("DELETE FROM history WHERE id=?", (instance.id,))
        self.db.execute(
            "UPDATE instances SET execution=?, input=?, status='Running', updated=?, custom_status=? WHERE id=?",
            (execution, raw_input, protocol.now(), custom_status, instance.id),
        )
        parent = None
        if instance.parent is not None and instance.parent_execution is not None and instance.parent_task is not None:
            parent = (instance.parent, instance.parent_execution, instance.parent_task)
        started = protocol.execution_started(
            instance.id, execution, instance.name, raw_input, instance.version, parent, first=False
        )
        self.post(instance.id, started, execution=execution)

    def append(self, instance_id: str, position: int, events: list[str]) -> None:
        """Append events to the history at `position`."""
        rows = [(instance_id, position + offset, text) for offset, text in enumerate(events)]
        self.db.executemany("INSERT INTO history(id, position, event) VALUES(?,?,?)", rows)

    def update(self, instance_id: str, **columns: Any) -> None:  # noqa: ANN401  column values of several types
        """Set columns of an instance and its time of update."""
        names = ", ".join(f"{name}=?" for name in columns)
        self.db.execute(
            f"UPDATE instances SET {names}, updated=? WHERE id=?",  # noqa: S608  names are this code's own keywords
            (*columns.values(), protocol.now(), instance_id),
        )

    def add_work(
        self,
        instance_id: str,
        execution: str,
        task: int,
        name: str,
        raw_input: str | None,
        *,
        visible_at: float = 0.0,
        late: str | None = None,
        copy: bool = False,
    ) -> Work:
        """Record an activity to run; a late one waits for the end of instance `late`."""
        cursor = self.db.execute(
            "INSERT INTO work(id, execution, task, name, input, visible_at, late, copy) VALUES(?,?,?,?,?,?,?,?)",
            (instance_id, execution, task, name, raw_input, NEVER if late else visible_at, late, copy),
        )
        assert cursor.lastrowid is not None
        return Work(cursor.lastrowid, instance_id, execution, task, name, raw_input)

    def finish_work(self, number: int, worker: str) -> None:
        """Forget an activity whose result has been posted, unless another worker has it by now."""
        self.db.execute("DELETE FROM work WHERE number=? AND worker=?", (number, worker))

    def purge(self, instance_ids: Iterable[str]) -> int:
        """Delete finished instances with everything of theirs; the number deleted."""
        deleted = 0
        for instance_id in instance_ids:
            instance = self.instance(instance_id)
            if instance is None or not instance.ended:
                continue
            for table in ("history", "messages", "work", "instances"):
                self.db.execute(f"DELETE FROM {table} WHERE id=?", (instance_id,))  # noqa: S608  fixed names
            deleted += 1
        return deleted

    # -- timers of the host ---------------------------------------------------------------------------

    def planned(self, timer: str) -> str | None:
        """The status recorded for a timer function, or None: what `plan` was given."""
        row = self.db.execute("SELECT status FROM timer_status WHERE name=?", (timer,)).fetchone()
        return row["status"] if row else None

    def plan(self, timer: str, status: str) -> None:
        """Record a timer function's status: when it fired, when it is due next."""
        self.db.execute("INSERT OR REPLACE INTO timer_status VALUES(?,?)", (timer, status))
