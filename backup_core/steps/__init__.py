"""The contract between orchestrations and activities: the name, the input and the result of each step.

A step never raises an expected failure: it answers an Outcome, because values keep their type on the way to an orchestrator
and exceptions do not. Everything here is JSON; history carries references (plan names, snapshot ids), never payloads.
"""

from __future__ import annotations

from backup_core.steps.backup import BACKUP_STEPS
from backup_core.steps.copying import COPYING_STEPS
from backup_core.steps.housekeeping import HOUSEKEEPING_STEPS
from backup_core.steps.rebuild import REBUILD_STEPS
from backup_core.steps.restore import RESTORE_STEPS

STEPS = (*BACKUP_STEPS, *COPYING_STEPS, *RESTORE_STEPS, *HOUSEKEEPING_STEPS, *REBUILD_STEPS)
"""Every step; function_app.py registers an activity for each of its names."""

BY_NAME = {name: step for step in STEPS for name in step.names}
"""Every step by each of its names."""
