"""Settings: all errors are reported at once, and no secret is disclosed."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from backup_core.bootstrap import account_ids
from backup_core.settings import Settings, SettingsError, load
from devhost.platform import REPOSITORY, SAMPLE_SETTINGS

GOOD = {
    "BACKUP_SCHEDULE": "0 0 */12 * * *",
    "WATCH_SCHEDULE": "0 */15 * * * *",
    "HOUSEKEEPING_SCHEDULE": "0 30 3 * * *",
    "SOURCE_ACCOUNTS": "https://one.blob.core.windows.net https://two.blob.core.windows.net/",
    "BACKUP_ACCOUNT": "https://backup.blob.core.windows.net",
    "CATALOGUE_ACCOUNT": "https://state.table.core.windows.net",
}


def faults(environment):
    with pytest.raises(SettingsError) as refused:
        load(environment)
    return str(refused.value)


def test_good_settings():
    settings = load(GOOD)

    assert settings.source_accounts == ("https://one.blob.core.windows.net", "https://two.blob.core.windows.net")
    assert (settings.heads_container, settings.wave_shards, settings.development) == ("heads", 4, False)


@pytest.mark.parametrize("zone", ["W. Europe Standard Time", "Europe/Berlin", "CET-1CEST"])
@pytest.mark.parametrize("setting", ["WEBSITE_TIME_ZONE", "TZ"])
def test_a_host_that_would_read_the_schedules_in_another_time_zone_is_refused(setting, zone):
    """Its timers would fire for other windows than those that the watch and the disks' due times are counted by."""
    reported = faults({**GOOD, "WEBSITE_SITE_NAME": "pagekeeper", setting: zone})

    assert f"{setting}: {zone!r}; the schedules are UTC" in reported
    assert "delete this setting" in reported


@pytest.mark.parametrize("zone", ["", "UTC", "Etc/UTC", "UTC0", "GMT"])
def test_a_host_in_utc_is_accepted(zone):
    load({**GOOD, "WEBSITE_SITE_NAME": "pagekeeper", "WEBSITE_TIME_ZONE": zone, "TZ": zone})


def test_the_time_zone_of_a_developers_machine_is_not_the_hosts():
    load({**GOOD, "TZ": "Europe/Berlin"})


def test_all_missing_settings_are_reported_at_once():
    reported = faults({})

    assert "6 faults" in reported
    assert all(f"{name}: not set" in reported for name in GOOD)


def test_all_wrong_and_contradictory_settings_are_reported_at_once():
    reported = faults(
        {
            "BACKUP_SCHEDULE": "every day",
            "SOURCE_ACCOUNTS": "https://same.blob.core.windows.net http://plain.blob.core.windows.net nonsense https://u:p@x.test https://y.test?sig=canary",
            "BACKUP_ACCOUNT": "https://same.blob.core.windows.net",
            "CATALOGUE_ACCOUNT": "ftp://x",
            "HEADS_CONTAINER": "same",
            "PLANS_CONTAINER": "same",
            "CATALOGUE_TABLE": "no-hyphens",
            "WAVE_SHARDS": "100",
            "WATCH_SCHEDULE": "often",
            "DEVELOPMENT_KEYS": '{"a": "canary"}',
            "MANAGED_IDENTITY_CLIENT_ID": "id",
        }
    )

    for part in (
        "BACKUP_SCHEDULE: expected an NCRONTAB", "WATCH_SCHEDULE: expected an NCRONTAB", "uses http", "'nonsense' is not an account endpoint", "carries a credential",
        "BACKUP_ACCOUNT is one of SOURCE_ACCOUNTS", "'ftp://x' is not an account endpoint", "HEADS_CONTAINER and PLANS_CONTAINER",
        "CATALOGUE_TABLE: expected a table name", "WAVE_SHARDS", "DEVELOPMENT_KEYS is set without DEVELOPMENT",
        "both set; expected one way to sign in",
    ):  # fmt: skip
        assert part in reported, part
    assert "canary" not in reported


@pytest.mark.parametrize("keys", ["{", "[]", '"x"', '{"a": 5}'])
def test_malformed_keys(keys):
    assert "DEVELOPMENT_KEYS" in faults({**GOOD, "DEVELOPMENT": "true", "DEVELOPMENT_KEYS": keys})


@pytest.mark.parametrize("name", ["BACKUP_SCHEDULE", "WATCH_SCHEDULE", "HOUSEKEEPING_SCHEDULE"])
@pytest.mark.parametrize(
    ("schedule", "warning"),
    [
        ("0 0 */12 * *", "expected an NCRONTAB expression of six fields"),
        ("0 0 2 * * 7", "weekday '7': expected values from 0 to 6"),
        ("0 0 2 ? * *", "day '?' is not NCRONTAB"),
        ("0 0 2 * * FRI-MON", "weekday 'FRI-MON' runs backwards: the host reverses it, into Monday to Friday"),
        ("0 0 22-2 * * *", "hour '22-2' runs backwards: the host reverses it, into 2 to 22"),
        ("0 */0 * * * *", "minute '*/0' has a step of 0: the host takes it for 1, every value from 0 to 59"),
        ("0 0 2 30 2 *", "the schedule '0 0 2 30 2 *' is never due"),
    ],
)
def test_a_schedule_that_would_surprise_is_refused(name, schedule, warning):
    """The refusal says how the host would have read the schedule."""
    assert f"{name}: {warning}" in faults({**GOOD, name: schedule})


@pytest.mark.parametrize("schedule", ["0 0 2 * * MON-FRI", "0 0 2 29 2 1", "0 0 2 1-7 * SUN", "0 0 22-23,0-2 * * *"])
def test_a_schedule_that_means_what_it_seems_is_accepted(schedule):
    assert load({**GOOD, "BACKUP_SCHEDULE": schedule}).backup_schedule == schedule


def test_http_is_for_loopback_in_development_only():
    local = {**GOOD, "BACKUP_ACCOUNT": "http://127.0.0.1:10000/backup"}

    assert "uses http" in faults(local)
    assert load({**local, "DEVELOPMENT": "true"}).development
    assert "uses http" in faults({**GOOD, "BACKUP_ACCOUNT": "http://example.test/backup", "DEVELOPMENT": "true"})


@pytest.mark.parametrize(
    "spelling",
    [
        "https://ONE.blob.core.windows.net",
        "https://one.blob.core.windows.net:443",
        "HTTPS://one.blob.core.windows.net./",
        "https://one.blob.core.windows.net//",
    ],
)
def test_an_account_has_one_name(spelling):
    """All spellings of an account are one name; an account listed twice, or as both source and backup, is refused."""
    assert load({**GOOD, "SOURCE_ACCOUNTS": spelling}).source_accounts == ("https://one.blob.core.windows.net",)
    assert "names https://one.blob.core.windows.net twice" in faults(
        {**GOOD, "SOURCE_ACCOUNTS": f"https://one.blob.core.windows.net {spelling}"}
    )
    assert "BACKUP_ACCOUNT is one of SOURCE_ACCOUNTS" in faults({**GOOD, "BACKUP_ACCOUNT": spelling})


def test_a_secondary_endpoint_is_refused():
    assert "read-only secondary" in faults({**GOOD, "SOURCE_ACCOUNTS": "https://one-secondary.blob.core.windows.net"})


def test_keys_do_not_show():
    settings = load({**GOOD, "DEVELOPMENT": "true", "DEVELOPMENT_KEYS": '{"a": "canary"}'})

    assert "canary" not in repr(settings)


def test_the_sample_names_every_setting_and_no_other():
    """The sample names every setting, with the defaults of the code."""
    values = json.loads(SAMPLE_SETTINGS.read_text())["Values"]
    of_the_host = {"FUNCTIONS_WORKER_RUNTIME", "AzureWebJobsStorage"}

    assert {name.lower() for name in set(values) - of_the_host} == set(Settings.model_fields) - {
        "website_auth_enabled",
        "website_hostname",
    }
    for name in (
        "heads_container",
        "plans_container",
        "catalogue_table",
        "wave_shards",
        "in_flight",
        "managed_identity_client_id",
    ):
        assert values[name.upper()] == str(Settings.model_fields[name].default)


def test_the_app_refuses_to_start_with_a_readable_list():
    """With an empty environment the real function_app.py prints the list of faults, and no chain of tracebacks."""
    ended = subprocess.run(
        [sys.executable, "-c", "import function_app"],
        cwd=REPOSITORY,
        env={"PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )

    assert ended.returncode != 0
    assert "SettingsError: the app's settings have 6 faults" in ended.stderr


ID = "/subscriptions/11111111-2222-3333-4444-555555555555/resourceGroups/web/providers/Microsoft.Storage/storageAccounts/{}"


def test_the_ids_of_source_accounts_are_matched_by_name():
    settings = load({**GOOD, "SOURCE_ACCOUNT_IDS": f"{ID.format('two')} {ID.format('One')}"})

    assert account_ids(settings) == {
        "https://one.blob.core.windows.net": ID.format("One"),
        "https://two.blob.core.windows.net": ID.format("two"),
    }
    assert account_ids(load(GOOD)) == {}


def test_invalid_ids_and_ids_of_other_accounts_are_refused():
    assert "SOURCE_ACCOUNT_IDS: expected ids such as" in faults({**GOOD, "SOURCE_ACCOUNT_IDS": "one"})
    assert "is the id of no account of SOURCE_ACCOUNTS" in faults({**GOOD, "SOURCE_ACCOUNT_IDS": ID.format("three")})


def test_former_catalogues():
    """Table names do not distinguish upper and lower case."""
    assert load({**GOOD, "FORMER_CATALOGUES": "lost/Pagekeeper old/table"}).former_catalogues == (
        "lost/pagekeeper",
        "old/table",
    )
    assert "FORMER_CATALOGUES: expected account/table" in faults({**GOOD, "FORMER_CATALOGUES": "pagekeeper"})


def test_custody_requires_an_account_that_no_other_app_writes():
    custody = {**GOOD, "CUSTODY_ACCOUNT": "https://custody.blob.core.windows.net", "PRUNE_AFTER_BACKUP": "false"}
    assert load(custody).custody_account == "https://custody.blob.core.windows.net"
    assert "CUSTODY_ACCOUNT" in faults({**custody, "CUSTODY_ACCOUNT": GOOD["BACKUP_ACCOUNT"] + "/"})
    assert "PRUNE_AFTER_BACKUP is not false" in faults({**custody, "PRUNE_AFTER_BACKUP": "true"})
