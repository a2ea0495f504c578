"""The app's settings over the emulator."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from backup_core import settings

if TYPE_CHECKING:
    from devhost.storage import Storage


def settings_for(storage: Storage, **overrides: str) -> settings.Settings:
    """Settings of an app whose accounts are the emulator's."""
    accounts = (storage.source, storage.backup, storage.state)
    return settings.load(
        {
            "BACKUP_SCHEDULE": "0 0 */12 * * *",
            "WATCH_SCHEDULE": "0 */15 * * * *",
            "HOUSEKEEPING_SCHEDULE": "0 30 3 * * *",
            "SOURCE_ACCOUNTS": storage.source.blobs,
            "BACKUP_ACCOUNT": storage.backup.blobs,
            "CATALOGUE_ACCOUNT": storage.state.tables,
            "DEVELOPMENT": "true",
            "DEVELOPMENT_KEYS": json.dumps({one.name: one.key for one in accounts}),
            **overrides,
        }
    )
