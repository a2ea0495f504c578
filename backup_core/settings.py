# Long: every setting, with what it must be.
"""Environment to frozen settings: every fault is reported at once, by name, with what is expected."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator

from backup_core.domain.coalescing import GAP_RATIO
from backup_core.domain.fleet import ACTIVE_DISKS, ACTIVE_SHARDS_MAX
from backup_core.domain.managed import DiskRestore
from backup_core.domain.naming import ACCOUNT_ID, GROUP_ID, account_name
from backup_core.domain.ncrontab import parse
from backup_core.domain.pacing import ACCOUNT_RATES, BLOB_RATES
from backup_core.domain.ranges import MIB
from backup_core.domain.windows import next_window
from backup_core.protocol.copy_route import CopyMode
from backup_core.steps.copying import FullCopy, Verification

IDENTITIES = (
    "managed_identity_client_id", "source_client_id", "writer_client_id", "retention_client_id", "restore_client_id",
)  # fmt: skip
EXPORT_HOSTS = (
    "md-*.blob.storage.azure.net",
    "md-*.blob.core.windows.net",
    "md-*.blob.core.usgovcloudapi.net",
    "md-*.blob.core.chinacloudapi.cn",
)
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_UTC = frozenset({"utc", "utc0", "etc/utc", "gmt", "gmt0", "etc/gmt"})
_ANY_MOMENT = datetime(2026, 1, 1, tzinfo=UTC)
"""A schedule that is not due within 40 years of one moment is never due."""


class SettingsError(Exception):
    """The environment does not describe a working app. The text lists every fault."""


class Settings(BaseModel):
    """The application settings; a setting's name is its field's, in upper case."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    backup_schedule: str
    """NCRONTAB, six fields, UTC; `0 0 */12 * * *` is every 12 hours; both day fields must match. Refused at the start:
    what is never due, what the host would read otherwise than it looks (`FRI-MON`, a step of 0), and another time zone of the
    host (`WEBSITE_TIME_ZONE`).
    """
    watch_schedule: str
    """The same: when the app writes to its log how each disk stands, for alerts; `0 */15 * * * *` is every 15 minutes."""
    housekeeping_schedule: str
    """The same: when the app removes what runs have left behind; `0 30 3 * * *` is each night."""
    source_accounts: tuple[str, ...]
    """Blob endpoints whose disks may be protected, separated by spaces: the allow-list."""
    backup_account: str
    """Blob endpoint that keeps the backups; never one of the sources."""
    catalogue_account: str
    """Table endpoint that keeps the catalogue."""
    heads_container: str = "heads"
    """Container of the backup blobs."""
    plans_container: str = "plans"
    """Container of the runs' plans."""
    catalogue_table: str = "pagekeeper"
    """The table; with the account it is the deployment's identity. The two containers belong to one catalogue, and
    refuse an app with another.
    """
    former_catalogues: tuple[str, ...] = ()
    """`account/table` of catalogues, separated by spaces, that are lost or retired for good. This app takes over their
    containers and snapshots.
    """
    managed_identity_client_id: str = ""
    """Client id of the user-assigned identity; empty uses the app's default credential."""
    source_client_id: str = ""
    """Client id of the identity that reads and snapshots sources for backups: see [Roles](security.md#roles); empty is
    `MANAGED_IDENTITY_CLIENT_ID`, as for the next three.
    """
    writer_client_id: str = ""
    """Client id of the identity that writes backups and the catalogue."""
    retention_client_id: str = ""
    """Client id of the identity that deletes what is not needed any more."""
    restore_client_id: str = ""
    """Client id of the identity that writes restored disks and changes machines."""
    wave_shards: int = Field(default=4, ge=1, le=16)
    """Parts of one disk copied side by side, 1 to 16; of many disks fewer, so that a window copies 64 parts at a time
    at most.
    """
    active_disks: int = Field(default=ACTIVE_DISKS, ge=1, le=ACTIVE_SHARDS_MAX)
    """Disks of a window backed up side by side, 1 to 64: as many page blobs at their limit as fill the 25 Gbit/s of the
    backup account (40 fill its requests). Others have their turn, longest first, as one is done.
    """
    copy_mode: CopyMode = "auto"
    """How changed pages travel. `server`: the backup account fetches them itself (Put Page From URL), none passes the
    app. `stream`: through the app. `auto`: `server` where the backup account can read the source, else `stream`.
    """
    full_copy: FullCopy = "pages"
    """How full backups are copied: `pages` as increments are, allocated ranges only; `blob` by one Copy Blob of the
    service, which costs no worker time.
    """
    in_flight: int = Field(default=16, ge=1, le=64)
    """Requests at a time within one part, 1 to 64."""
    gap_ratio: float = Field(default=GAP_RATIO, ge=0, le=100)
    """How many unchanged bytes a backup may copy along for each changed one, where small gaps between changes cost more
    requests than bytes, 0 to 100; `0` copies none. The price is in [cost and limits](cost-and-limits.md).
    """
    blob_requests_per_second: int = Field(default=int(BLOB_RATES.requests), ge=1, le=100_000)
    """The pace at which a worker begins to send requests to one blob, the documented limit of a standard page blob.
    What the service takes is found from there, up and down; a large premium blob is found sooner from its own limit.
    """
    blob_mib_per_second: int = Field(default=int(BLOB_RATES.bytes / MIB), ge=1, le=100_000)
    """The same for the bytes."""
    account_requests_per_second: int = Field(default=int(ACCOUNT_RATES.requests), ge=1, le=1_000_000)
    """The same for one account: the default limit of a standard account in most regions."""
    account_mib_per_second: int = Field(default=int(ACCOUNT_RATES.bytes / MIB), ge=1, le=1_000_000)
    """The same for the bytes: 25 Gbit/s."""
    restore_verification: Verification = "full"
    """How much of a restored disk is compared with its restore point: `full`, every allocated byte; `sampled`."""
    source_account_ids: tuple[str, ...] = ()
    """Resource ids of accounts of `SOURCE_ACCOUNTS`, separated by spaces: Azure imports a VHD as a managed disk only
    with its account's id. A restore that has a managed disk imported through an account that is not named here is
    refused before it begins; one that uploads it (`DISK_RESTORE`) needs no account.
    """
    disk_restore: DiskRestore = "upload"
    """How a restore makes a managed disk: `upload` writes it, and needs no storage account; `import` has Azure make it
    of a page blob, as always when the call names that blob's place.
    """
    machine_groups: tuple[str, ...] = ()
    """Ids of the resource groups whose VMs may be given restored disks, separated by spaces; empty: none."""
    disk_groups: tuple[str, ...] = ()
    """Ids of the resource groups whose managed disks may be protected, separated by spaces: their allow-list; empty: none."""
    snapshot_group: str = ""
    """Id of the resource group that keeps the snapshots of managed disks, of the disks' own subscription; empty: each
    disk's own group.
    """
    snapshot_access_seconds: int = Field(default=7200, ge=600, le=86400)
    """How long a run is granted access to a snapshot of a managed disk, 600 to 86400; one that takes longer has it
    granted anew at half of that.
    """
    export_hosts: tuple[str, ...] = EXPORT_HOSTS
    """Patterns of the hosts that exports of managed disks are read from, separated by spaces; nothing is sent to another."""
    export_maxresults: bool = True
    """Whether listings of exports ask for pages of 10,000 ranges; `false` where the service refuses that."""
    arm_endpoint: str = "https://management.azure.com"
    """Azure Resource Manager; another one in national clouds."""
    history_days: int = Field(default=30, ge=1, le=3650)
    """Days that Durable Functions keeps the history of an orchestration that has ended, 1 to 3650."""
    run_days: int = Field(default=180, ge=7, le=3650)
    """Days that the catalogue keeps a run that has ended, 7 to 3650."""
    prune_after_backup: bool = True
    """Whether a backup deletes what its disk's retention no longer keeps; `false`: only housekeeping does."""
    custody_account: str = ""
    """Blob endpoint of an account that only an app with [custody of the backups](security.md#roles) can write to, with
    `PRUNE_AFTER_BACKUP=false`; its records are in the container `custody` there.
    """
    custody_days: int = Field(default=7, ge=1, le=365)
    """With `CUSTODY_ACCOUNT`: days that a shorter retention waits until it is applied, and that a restore point is kept
    at least, 1 to 365.
    """
    custody_deletions: int = Field(default=24, ge=1, le=1000)
    """With `CUSTODY_ACCOUNT`: restore points of one disk that one night deletes at most, 1 to 1000."""
    sign_in: Literal["keys", "entra"] = "keys"
    """How callers are known: `keys`, by function key; `entra`: besides by Entra ID, with [roles of the
    app](security.md#signing-in). `WEBSITE_AUTH_ENABLED`, which App Service sets itself, must then say that its sign-in
    is on.
    """
    development: bool = False
    """Allows http on loopback and keys; never in the cloud."""
    development_keys: dict[str, SecretStr] = Field(default_factory=dict)
    """JSON of account name to account key or SAS, or of `identity@account` for one of the four duties; only with
    `DEVELOPMENT`.
    """

    website_auth_enabled: bool = False
    """Set by App Service itself where its sign-in is on."""
    website_hostname: str = ""
    """Set by App Service itself: the app's own host name, for the addresses in answers."""

    @field_validator("source_accounts")
    @classmethod
    def _some(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            message = "expected at least one blob endpoint, such as https://account.blob.core.windows.net"
            raise ValueError(message)
        return tuple(_one_form(one) for one in value)

    @field_validator("source_account_ids")
    @classmethod
    def _account_ids(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        wrong = [one for one in value if not ACCOUNT_ID.fullmatch(one)]
        if wrong:
            message = (
                "expected ids such as /subscriptions/…/resourceGroups/web/providers/Microsoft.Storage/storageAccounts/disks, "
                f"found {wrong[0][:200]!r}"
            )
            raise ValueError(message)
        return value

    @field_validator("machine_groups", "disk_groups")
    @classmethod
    def _groups(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        wrong = [one for one in value if not GROUP_ID.fullmatch(one)]
        if wrong:
            message = f"expected ids such as /subscriptions/…/resourceGroups/web, found {wrong[0][:200]!r}"
            raise ValueError(message)
        return tuple(one.lower() for one in value)

    @field_validator("snapshot_group")
    @classmethod
    def _group(cls, value: str) -> str:
        return cls._groups((value,))[0] if value else ""

    @field_validator("export_hosts")
    @classmethod
    def _hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        wrong = [one for one in value if not re.fullmatch(r"[a-z0-9*][a-z0-9.*-]*[a-z0-9]", one)]
        if wrong:
            message = f"expected patterns of host names such as {EXPORT_HOSTS[0]}, found {wrong[0][:200]!r}"
            raise ValueError(message)
        return value

    @field_validator("former_catalogues")
    @classmethod
    def _catalogues(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        wrong = [one for one in value if not re.fullmatch(r"[a-z0-9-]+/[A-Za-z][A-Za-z0-9]{2,62}", one)]
        if wrong:
            message = f"expected account/table, such as backups/pagekeeper, found {wrong[0][:200]!r}"
            raise ValueError(message)
        return tuple(one.lower() for one in value)

    @field_validator("backup_account", "catalogue_account", "custody_account", "arm_endpoint")
    @classmethod
    def _trimmed(cls, value: str) -> str:
        return _one_form(value)

    @field_validator("backup_schedule", "watch_schedule", "housekeeping_schedule")
    @classmethod
    def _schedule(cls, value: str) -> str:
        """The schedule. ValueError for one that the host would refuse, would misread, or would never fire."""
        if pitfalls := parse(value).pitfalls:
            message = "; ".join(pitfalls)
            raise ValueError(message)
        next_window(value, _ANY_MOMENT)
        return value

    @field_validator("heads_container", "plans_container")
    @classmethod
    def _container(cls, value: str) -> str:
        if not re.fullmatch(r"[a-z0-9](?:-?[a-z0-9]){2,62}", value):
            message = "expected a container name: 3 to 63 lower-case letters, digits and single hyphens"
            raise ValueError(message)
        return value

    @field_validator("catalogue_table")
    @classmethod
    def _table(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9]{2,62}", value):
            message = "expected a table name: 3 to 63 letters and digits, a letter first"
            raise ValueError(message)
        return value


def _one_form(endpoint: str) -> str:
    """The endpoint in the form that all its spellings share: host in lower case, no default port, nothing at the end."""
    match = re.fullmatch(r"(?i)(https?)://([^/@?#]+?)\.?(:\d+)?(/.*)?", endpoint.rstrip("/"))
    if match is None:
        return endpoint.rstrip("/")  # reported as a fault below
    scheme, host, port, path = match[1].lower(), match[2].lower(), match[3] or "", match[4] or ""
    return f"{scheme}://{host}{'' if port == _DEFAULT_PORTS[scheme] else port}{path}"


def load(environment: Mapping[str, str]) -> Settings:
    """The settings in `environment`. Raises SettingsError, which lists every fault and no secret."""
    values: dict[str, Any] = {
        name: environment[name.upper()] for name in Settings.model_fields if environment.get(name.upper())
    }
    faults: list[str] = []
    for name in ("source_accounts", "source_account_ids", "machine_groups", "disk_groups", "export_hosts", "former_catalogues"):
        if name in values:
            values[name] = tuple(values[name].split())
    if "development_keys" in values:
        try:
            values["development_keys"] = json.loads(values["development_keys"])
        except ValueError:
            faults.append("DEVELOPMENT_KEYS: expected a JSON object of account name to key or SAS")
            del values["development_keys"]
    settings: Settings | None = None
    try:
        settings = Settings(**values)
    except ValidationError as error:
        faults += [_words(one) for one in error.errors(include_input=False, include_url=False)]
    faults += _contradictions(values) + _other_time_zones(environment)
    if faults or settings is None:
        lines = "\n".join(f"  - {fault}" for fault in faults)
        message = f"the app's settings have {len(faults)} faults (see local.settings.sample.json):\n{lines}"
        raise SettingsError(message)
    return settings


def _words(one: Any) -> str:  # noqa: ANN401  pydantic's ErrorDetails
    name = str(one["loc"][0]).upper()
    text = str(one["msg"]).removeprefix("Value error, ")
    return f"{name}: not set" if one["type"] == "missing" else f"{name}: {text}"


def _other_time_zones(environment: Mapping[str, str]) -> list[str]:
    """Faults of settings by which the Functions host would read the schedules in another time zone than this app does."""
    # Of a developer's machine, TZ is no setting of the app.
    names = ("WEBSITE_TIME_ZONE", "TZ") if environment.get("WEBSITE_SITE_NAME") else ("WEBSITE_TIME_ZONE",)
    zones = {name: environment.get(name, "") for name in names}
    return [
        f"{name}: {zone[:80]!r}; the schedules are UTC, also where clocks change in summer; delete this setting"
        for name, zone in zones.items()
        if zone and zone.lower() not in _UTC
    ]


def _contradictions(values: Mapping[str, Any]) -> list[str]:
    """Faults between settings, found also when single settings are at fault."""
    development = str(values.get("development", "")).lower() in ("true", "1", "yes", "on")
    sources = [_one_form(url) for url in values.get("source_accounts", ())]
    backup = _one_form(values.get("backup_account", ""))
    urls = {
        "SOURCE_ACCOUNTS": sources,
        "BACKUP_ACCOUNT": [backup],
        "CATALOGUE_ACCOUNT": [values.get("catalogue_account", "")],
        "CUSTODY_ACCOUNT": [values.get("custody_account", "")],
        "ARM_ENDPOINT": [values.get("arm_endpoint", "")],
    }
    faults = [
        f"{name}: {fault}"
        for name, some in urls.items()
        for url in some
        if url and (fault := _unfit(url, development=development))
    ]
    faults += [
        f"SOURCE_ACCOUNTS names {url} twice; its blobs would have two names" for url in sources if sources.count(url) > 1
    ][:1]
    names = {account_name(url).lower() for url in sources}
    faults += [
        f"SOURCE_ACCOUNT_IDS: {one[:200]!r} is the id of no account of SOURCE_ACCOUNTS"
        for one in values.get("source_account_ids", ())
        if ACCOUNT_ID.fullmatch(one) and one.rpartition("/")[2].lower() not in names
    ]
    if backup and backup in sources:
        faults.append("BACKUP_ACCOUNT is one of SOURCE_ACCOUNTS: a backup must not live in the account it protects")
    custody = _one_form(values.get("custody_account", ""))
    if custody and custody in (backup, *sources):
        faults.append(
            f"CUSTODY_ACCOUNT {custody} is the backup account or a source account; expected one that only this app writes to"
        )
    if custody and str(values.get("prune_after_backup", "true")).lower() in ("true", "1", "yes", "on"):
        faults.append("CUSTODY_ACCOUNT is set and PRUNE_AFTER_BACKUP is not false; expected an app that does not back up")
    if values.get("heads_container", "heads") == values.get("plans_container", "plans"):
        faults.append("HEADS_CONTAINER and PLANS_CONTAINER are the same; expected two containers")
    if values.get("development_keys") and not development:
        faults.append("DEVELOPMENT_KEYS is set without DEVELOPMENT=true: in the cloud the app uses its identity, never keys")
    if values.get("development_keys"):
        both = [identity.upper() for identity in IDENTITIES if values.get(identity)]
        faults += [f"DEVELOPMENT_KEYS and {identity} are both set; expected one way to sign in" for identity in both]
    return faults


def _unfit(url: str, *, development: bool) -> str:
    parts = urlsplit(url)
    shown = url.split("?", maxsplit=1)[0]
    if parts.username or parts.query:
        return "the endpoint carries a credential or a query; expected the bare endpoint"
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.fragment:
        return f"{shown!r} is not an account endpoint; expected https://account.blob.core.windows.net or the like"
    if (parts.hostname or "").partition(".")[0].endswith("-secondary"):
        return f"{shown!r} is the read-only secondary of an account; expected the primary endpoint"
    if parts.scheme == "http" and not (development and parts.hostname in _LOOPBACK):
        return f"{shown!r} uses http; expected https (http is for loopback with DEVELOPMENT=true)"
    return ""
