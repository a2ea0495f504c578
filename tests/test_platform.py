"""The commands of the README, run as a person would: up twice, its curl lines, the demo; nothing is left running."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from azure.data.tables import AccountSasPermissions as TablePermissions
from azure.data.tables import ResourceTypes as TableResources
from azure.data.tables import generate_account_sas as generate_table_sas
from azure.storage.blob import AccountSasPermissions, ResourceTypes, generate_account_sas

from devhost.platform import REPOSITORY, Platform, awaited
from devhost.processes import PATIENCE
from tests.curl import path_with_curl
from tests.disk import Disk
from tests.infra import kql
from tests.infra.test_telemetry import HEALTHY, QUERIES, raised


def children_of(pid):
    """Processes started by `pid`, and by those."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            child = int(stat.parent.name)
            found += [child, *children_of(child)]
    return found


def command_lines():
    """Yield the command line of every process on the machine."""
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            yield file.read_bytes().replace(b"\0", b" ").decode(errors="replace")


def becomes(condition, seconds=15):
    """Whether `condition` comes true in that time."""
    try:
        return awaited(condition, "a condition", timeout_seconds=seconds)
    except TimeoutError:
        return False


def is_running(pid):
    """Whether the process runs. A zombie does not count: in a container, the first process may never collect it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


def gone(pids):
    return becomes(lambda: not any(is_running(pid) for pid in pids))


class Up:
    """`python -m devhost up`, and its output."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "devhost", "up"], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        lines = []
        for line in self.process.stdout:
            lines.append(line)
            if "Ctrl-C" in line:
                break
        self.said = "".join(lines)
        self.children = children_of(self.process.pid)

    def end(self, number):
        self.process.send_signal(number)
        status = self.process.wait(20)
        self.process.stdout.close()
        return status


def pasted(lines, folder, *more):
    """Run lines in one shell, as if pasted together. Returns their output."""
    script = "\n".join(["set -u", *lines, *more])
    environment = {**os.environ, "PATH": path_with_curl(folder)}
    return subprocess.run(
        ["/bin/bash", "-c", script], env=environment, capture_output=True, text=True, timeout=100 * PATIENCE, check=True
    ).stdout


def test_up_twice_with_its_curl_lines(tmp_path):
    """Two platforms side by side; the printed lines work as printed, pasted together; Ctrl-C stops everything each started."""
    first, second = Up(), Up()
    try:
        for up in (first, second):
            trying, _, using = up.said.partition("What the handbook's calls need")
            lines, variables = (
                re.findall(r"^  (\S.*)$", part.partition("A first try")[2] or part, re.MULTILINE) for part in (trying, using)
            )
            said = pasted(lines, tmp_path)
            assert '"id":"play"' in said
            assert " 202 " in said
            assert '"state":"available"' in said
            assert '"planHash"' in said
            assert '"error": {' not in said
            said = pasted(
                variables, tmp_path, 'call "$API/health"', 'echo "$DISK_URL $VM $SOURCE_CONNECTION $BACKUP_CONNECTION"'
            )
            assert '"status":"ok"' in said
            for part in (
                "/vhds/web.vhd",
                "virtualMachines/web-vm",
                "AccountName=source;AccountKey=",
                "AccountName=backup;AccountKey=",
            ):
                assert part in said
            protect = '-X PUT "$API/disks/web" -d "{\\"source\\": \\"$DISK_URL\\", \\"machine\\": {\\"vm\\": \\"$VM\\", \\"lun\\": 0}}"'
            assert '"warnings":[]' in pasted(variables, tmp_path, f"call {protect}")
            assert len(up.children) == 3
        addresses = [set(re.findall(r"http://127\.0\.0\.1:\d+", up.said)) for up in (first, second)]
        assert not addresses[0] & addresses[1]
    finally:
        assert first.end(signal.SIGINT) == 0
        second.end(signal.SIGKILL)

    assert gone(first.children)
    assert gone(second.children), "children end even when their parent is killed"


def test_the_demo_proves_its_points(tmp_path):
    """Exit 0, all points and the restored disk equal, in words; nothing left running; workbook and alerts can read its log."""
    if shutil.which("mkfs.ext4", path=os.environ["PATH"] + ":/usr/sbin:/sbin") is None:
        pytest.skip(reason="e2fsprogs is not on this machine: the demo was not run")
    telemetry = tmp_path / "telemetry.jsonl"
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    own["TMPDIR"] = str(tmp_path)  # its processes name their folders: those of another demo on the machine are not these
    ended = subprocess.run(
        ["make", "demo", f"TELEMETRY={telemetry}"],
        cwd=REPOSITORY,
        env=own,
        capture_output=True,
        text=True,
        timeout=280 * PATIENCE,
        check=False,
    )

    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.count("equal") >= 9
    assert ended.stdout.count("server mode: ") == 4
    assert "against the first moment: equal" in ended.stdout
    for size, kinds in (
        (r"1\.0 GiB", {"full": 1, "incremental": 2, "restored": 1}),
        (r"64\.0 MiB", {"full": 1, "incremental": 2}),
    ):
        for kind, times in kinds.items():
            assert len(re.findall(rf"Z +{kind} +{size}", ended.stdout)) == times, kind
    assert not [line for line in command_lines() if str(tmp_path) in line]
    logged = [json.loads(line) for line in telemetry.read_text().splitlines()]
    assert Counter(one["event"] for one in logged if one["event"] in ("run", "disk", "fleet")) == {
        "run": 7,
        "disk": 2,
        "fleet": 1,
    }
    for name, query in QUERIES:
        for line in logged:
            assert line["event"] != kql.event(query) or kql.fields(query) <= set(line), name
    for line in logged:
        if line["event"] in HEALTHY:
            assert raised(line["event"], line) <= {"window-missed"}, "windows of a second are always missed"


def test_the_demo_fails_when_a_byte_is_wrong(tmp_path):
    """Its proof can fail: a restored image with one other byte is not equal."""
    from devhost import disks  # noqa: PLC0415

    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(b"\0" * 9_000_000)
    other.write_bytes(b"\0" * 8_999_999 + b"\1")

    assert disks.first_difference(one, other) == 8_999_999
    assert disks.first_difference(one, one) is None


def test_a_platform_in_a_relative_folder(calm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Platform(Path("here"), storage=calm, settings={"CATALOGUE_TABLE": "relative"}) as platform:
        assert platform.api("GET", "/health").ok
    assert (tmp_path / "here" / "host" / "host.log").exists()


def test_a_sas_instead_of_keys(calm, tmp_path, name):
    """The sample settings take a SAS per account as well."""
    until = datetime.now(UTC) + timedelta(hours=1)
    every = ResourceTypes(service=True, container=True, object=True)

    def blob_sas(account):
        rights = AccountSasPermissions(read=True, write=True, delete=True, list=True, add=True, create=True)
        return generate_account_sas(account.name, account.key, every, rights, until)

    from azure.core.credentials import AzureNamedKeyCredential  # noqa: PLC0415

    table_rights = TablePermissions(read=True, write=True, delete=True, list=True, add=True, create=True, update=True)
    table_sas = generate_table_sas(
        AzureNamedKeyCredential(calm.state.name, calm.state.key),
        TableResources(service=True, container=True, object=True),
        table_rights,
        until,
    )
    keys = {"source": blob_sas(calm.source), "backup": blob_sas(calm.backup), "state": table_sas}
    with Platform(
        tmp_path, storage=calm, settings={"CATALOGUE_TABLE": "bysas", "DEVELOPMENT_KEYS": json.dumps(keys)}
    ) as platform:
        disk = Disk(platform, name, 1024 * 1024).protect()
        disk.write(0, b"\1" * 512)
        disk.back_up()

        disk.check_every_point()
        disk.service.close()


@pytest.mark.parametrize("spoiled", [False, True])
def test_the_bench_in_its_short_form(spoiled, tmp_path):
    """Its counts are at their goals; and they can be missed: a client that puts 2 MiB at a time is found out."""
    code = "from bench.__main__ import main; import sys; {spoil}; sys.exit(main(short=True))"
    spoil = (
        "from backup_core.activities import shards; from backup_core.domain import coalescing; "
        "from backup_core.domain.ranges import chunks; shards._check = lambda *_: None; "
        "coalescing.requests = lambda one: [one] if one.cleared else ["
        "type(one)(part, False) for part in chunks(one.range, 2 * 1024 * 1024)]"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code.format(spoil=spoil if spoiled else "pass")],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=200 * PATIENCE, check=False,
    )  # fmt: skip

    assert ended.returncode == (1 if spoiled else 0), ended.stdout + ended.stderr
    assert ("missed" in ended.stdout) is spoiled
    assert "SDK aio" in ended.stdout
