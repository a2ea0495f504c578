"""The handbook does what it says: its local commands and API calls are run, its cloud commands parsed, its links followed."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess

import pytest

from backup_core.api import openapi
from backup_core.api.routes import ROUTES
from devhost.disks import vhd_footer
from devhost.platform import REPOSITORY, Platform, awaited
from devhost.up import FUNCTIONS
from tests.activities.test_backup_protocol import STEPS_OF_A_BACKUP
from tests.curl import path_with_curl
from tests.disk import PAGE, Disk, ManagedDisk
from tests.infra.bicep import load

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
LINKED = [
    *PAGES,
    *(REPOSITORY / name for name in ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted((REPOSITORY / "docs" / "adr").glob("*.md")),
    REPOSITORY / ".github" / "pull_request_template.md",
]
"""Pages whose links are followed."""
LOCAL, API, CLOUD = (
    "# local: run by a test",
    "# the app's API: a test runs this against the local platform",
    "# cloud: not run here",
)
CHAPTERS = [REPOSITORY / "docs" / f"{name}.md" for name in ("deploy", "operate", "restore", "upgrade", "uninstall")]
"""Pages with calls of the API, in the order of reading."""
MIB = 1024 * 1024


def blocks(page):
    """(mark, commands) of each block of commands, whatever it is indented by."""
    for block in re.findall(r"^ *```bash\n(.*?)^ *```", page.read_text(), re.MULTILINE | re.DOTALL):
        lines = [line.strip() for line in block.strip().splitlines()]
        yield lines[0], lines[1:]


def of(mark, *pages):
    return [commands for page in pages or PAGES for marked, commands in blocks(page) if marked == mark]


def slug(heading):
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_says_where_it_was_run(page):
    assert {mark for mark, _ in blocks(page)} <= {LOCAL, API, CLOUD}
    fences = re.findall(r"^ *```(\w*)$", page.read_text(), re.MULTILINE)
    assert set(fences[1::2]) <= {""}, "a fence is not closed"
    assert set(fences[::2]) <= {"bash", "mermaid", ""}
    assert all("$ " not in line for _, commands in blocks(page) for line in commands)


@pytest.mark.parametrize("page", LINKED, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
            assert anchor in {slug(one) for one in headings}, target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_call_that_is_named_exists(page):
    shapes = [(route.method, re.sub(r"\{\w+\}", "[^/ ]+", route.path)) for route in ROUTES]
    for method, written in re.findall(r"\b(GET|PUT|POST|DELETE) /api/([^\s`?]+)", page.read_text()):
        path = written.replace("[/{id}]", "")
        assert any(method == known and re.fullmatch(shape, path) for known, shape in shapes), f"{method} {path}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_field_that_is_named_exists(page):
    """The name is a field of the API, a parameter of the deployment, or an option of host.json."""
    described = json.dumps(openapi.document(ROUTES, "https://app/api"))
    options = (REPOSITORY / "tests" / "infra" / "recorded" / "durable-options.json").read_text()
    known = set(re.findall(r'"(\w+)": \{', described)) | set(load(REPOSITORY / "infra" / "main.bicep").of("param"))
    known |= set(re.findall(r'"(\w+)":', options + (REPOSITORY / "host.json").read_text()))
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    named = {
        word
        for one in re.findall(r"`([^`]+)`", text)
        for word in re.findall(r"\b[a-z]+[A-Z]\w*", one)
        if "Microsoft" not in one
    }
    # Words of requests, of Azure, and of its stand-in.
    others = {"managedDisk", "pageBlob", "dataAccessAuthMode", "maxShares", "managedBy", "allowedCopyScope", "footerInDiff"}
    assert named - known - others == set()


def test_the_tour_lists_the_steps_of_a_backup_in_order():
    """Each step links to the file that has its activity."""
    rows = re.findall(r"^\| `(\w+)` \| \[\w+\.py\]\(([^)]+)\)", (REPOSITORY / "docs" / "tour.md").read_text(), re.MULTILINE)
    for step, file in rows:
        text = (REPOSITORY / "docs" / file).resolve().read_text()
        assert f"\nasync def {step}(" in text, step
    assert [step for step, _ in rows if step != "report_progress"] == STEPS_OF_A_BACKUP


def test_every_alert_has_its_page():
    """Under its own name, with what it means and three moves."""
    text = (REPOSITORY / "docs" / "alerts.md").read_text()
    sections = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    alerts = json.loads((REPOSITORY / "infra" / "alerts.json").read_text())

    assert set(sections) == {one["name"] for one in alerts}
    for one in alerts:
        assert re.findall(r"^(\d)\. ", sections[one["name"]], re.MULTILINE) == ["1", "2", "3"], one["name"]
        assert f"Severity {one['severity']}" in sections[one["name"]], one["name"]


def test_every_decision_has_its_number_its_parts_and_a_place_in_the_index():
    """In order, without a gap."""
    index = (REPOSITORY / "docs" / "adr" / "README.md").read_text()
    rows = re.findall(r"^\| \[(\d{4})\]\((\S+)\) \| (.+) \| ([\d-]+) \|$", index, re.MULTILINE)
    files = sorted(one.name for one in (REPOSITORY / "docs" / "adr").glob("0*.md"))

    assert [file for _, file, _, _ in rows] == files
    assert [number for number, _, _, _ in rows] == [f"{place:04d}" for place in range(1, len(files) + 1)]
    for number, file, title, date in rows:
        text = (REPOSITORY / "docs" / "adr" / file).read_text()
        assert text.startswith(f"# {number} {title}\n\n* Status: "), file
        assert f"\n* Date: {date}\n" in text, file
        parts = ["Context and Problem Statement", "Considered Options", "Decision Outcome", "Consequences"]
        assert re.findall(r"^## (.+)$", text, re.MULTILINE) == parts, file
        options = text[text.index("## Considered Options") : text.index("## Decision Outcome")]
        assert options.count("\n* ") >= 2, file


def test_every_runbook_is_there():
    headings = re.findall(r"^## (.+)$", (REPOSITORY / "docs" / "runbooks.md").read_text(), re.MULTILINE)

    assert headings == [
        "A failed window",
        "A quarantined restore point",
        "Lost restore points",
        "An account that failed over",
        "A lost catalogue",
        "A lost app",
        "A lost source account",
    ]


# -- the cloud: parsed ----------------------------------------------------------------------------------------------------

AZ = {
    "login", "ad app create", "ad app update", "ad sp create", "disk create", "disk delete", "functionapp delete", "functionapp function list", "functionapp deployment source config-zip",
    "functionapp keys list", "functionapp restart", "group show", "lock create", "lock delete", "network private-dns zone list",
    "network private-endpoint list", "provider register", "resource delete", "resource list", "role assignment delete",
    "role assignment list", "role definition delete", "role definition list", "storage account delete", "storage account show",
    "storage blob copy start", "storage blob delete", "storage blob list", "storage blob show", "storage blob undelete", "storage container create",
    "storage container delete", "storage container list", "storage container restore",
    "storage container generate-sas", "vm convert", "vm create", "vm deallocate", "vm disk attach", "vm disk detach",
}  # fmt: skip
AZD = {"auth login", "deploy", "env get-value", "env new", "env set", "package", "provision", "up"}


@pytest.mark.parametrize("commands", of(CLOUD), ids=lambda commands: commands[0][:40])
def test_cloud_commands_parse(commands):
    """As bash, and as calls of the Azure CLIs that exist; names of the deployment are names it has."""
    checked = subprocess.run(["/bin/bash", "-n"], input="\n".join(commands), text=True, capture_output=True, check=False)
    assert checked.returncode == 0, checked.stderr
    for line in commands:
        called = re.findall(r"\b(az|azd) ((?:[a-z-]+ ?)+)", re.sub(r"'[^']*'|--\S+", "", line))
        assert called or line.startswith(("TOMORROW=", "azcopy copy ")), line
        for program, words in called:
            known = AZ if program == "az" else AZD
            assert any(words.strip() == one or words.startswith(one + " ") for one in known), words
        assert shlex.split(line)
    text = "\n".join(commands)
    settable = (REPOSITORY / "infra" / "main.parameters.json").read_text()
    for name in re.findall(r"env set (\w+)", text):
        assert "${" + name in settable, name
    for name in re.findall(r"env get-value (\w+)", text):
        assert name in load(REPOSITORY / "infra" / "main.bicep").of("output") or "${" + name in settable, name


def test_the_uninstall_page_finds_the_snapshots_that_the_app_leaves(platform, name):
    """The page selects snapshots by a metadata key that the app writes on each of them."""
    disk = Disk(platform, name, MIB).protect()
    disk.back_up()
    (key,) = set(re.findall(r"\[\?snapshot && metadata\.(\w+)\]", (REPOSITORY / "docs" / "uninstall.md").read_text()))
    with platform.blobs(platform.storage.source) as client:
        listed = client.get_container_client("vhds").list_blobs(name, include=["snapshots", "metadata"])
        left = [one.metadata for one in listed if one.snapshot]
    assert len(left) == 1
    assert key in left[0]
    disk.service.close()


# -- here: run --------------------------------------------------------------------------------------------------------------


def make_targets():
    text = "\n".join(page.read_text() for page in PAGES)
    return sorted(
        set(re.findall(r"`(?:PAGEKEEPER_SEED=… )?make ([a-z]+)", text))
        | {line.split()[1] for lines in of(LOCAL) for line in lines}
    )


@pytest.mark.parametrize("target", make_targets())
def test_make_knows_every_target_that_is_named(target):
    ended = subprocess.run(["make", "-n", target], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def test_the_blocks_of_local_commands_are_those_that_are_run():
    """`make test` is what runs this; `make demo` is run by test_platform.py."""
    assert [[line.split("#")[0].strip() for line in lines] for lines in of(LOCAL)] == [["make demo", "make test"]]


def _plain():
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "MAKE", "MFLAGS"))}


@pytest.mark.timeout(300)
def test_the_handbooks_calls_of_the_api_work(calm, machines, tmp_path):
    """The calls run in the order of reading: protect, drill, restore, rebuild, the runbooks, and leaving at the end."""
    settings = {"CATALOGUE_TABLE": "handbook", "HEADS_CONTAINER": "handbook", "PLANS_CONTAINER": "handbookplans"}
    with Platform(tmp_path, storage=calm, machines=machines, settings=settings) as platform:
        disk = Disk(platform, "web", MIB)
        vm = machines.make("handbook", data={0: platform.disk_url("web.vhd")})
        disk.lease = machines.lease(platform.disk_url("web.vhd"))
        disk.write(0, b"\1" * PAGE)
        variables = {
            "API": f"{platform.host.origin}/api", "KEY": "any", "VM": vm, "DISK_URL": platform.disk_url("web.vhd"),
            "NEW_URL": calm.source.blobs,
        }  # fmt: skip
        chapters = [commands for commands in of(API, *CHAPTERS) if commands not in moving()]
        runbooks = of(API, REPOSITORY / "docs" / "runbooks.md")
        assert len(chapters) == 7
        assert len(runbooks) == 5
        *before, leaving = chapters
        assert len(FUNCTIONS) == 4, "as make up prints them"
        for commands in (*before, *runbooks, leaving):
            script = "\n".join(["set -euo pipefail", "sleep() { command sleep 0.2; }", *FUNCTIONS, *commands])
            ended = shell(script, variables, tmp_path, 120)
            assert ended.returncode == 0, f"{commands}: {ended.stdout[-1500:]} {ended.stderr[-1500:]}"
            idle(platform)

        runs = platform.api("GET", "/runs", params={"disk": "web", "top": 50}).json()["value"]
        assert {one["state"] for one in runs} == {"Succeeded"}
        assert sorted(one["operation"] for one in runs) == ["backup", "backup", "restore", "restore", "restore"]
        assert platform.api("GET", "/disks/web").json()["protection"] == "stopped"
        with platform.blobs(calm.source) as client:
            drill = client.get_blob_client("vhds", "drill.vhd")
            assert drill.download_blob().readall() == bytes(disk.content)
            drill.delete_blob()
        disk.service.close()
    machines.delete("handbook")


@pytest.mark.timeout(300)
def test_the_calls_of_the_readme_work(calm, machines, tmp_path):
    """One backup and one restore, with nothing but what `make up` prints."""
    (commands,) = of(API, REPOSITORY / "README.md")
    settings = {"CATALOGUE_TABLE": "readme", "HEADS_CONTAINER": "readme", "PLANS_CONTAINER": "readmeplans"}
    with Platform(tmp_path, storage=calm, machines=machines, settings=settings) as platform:
        disk = Disk(platform, "readme", MIB)
        disk.write(0, b"\1" * PAGE)
        variables = {"API": f"{platform.host.origin}/api", "KEY": "any", "DISK_URL": platform.disk_url("readme.vhd")}
        script = "\n".join(["set -euo pipefail", "sleep() { command sleep 0.2; }", *FUNCTIONS, *commands])
        ended = shell(script, variables, tmp_path, 120)
        assert ended.returncode == 0, f"{ended.stdout[-1500:]} {ended.stderr[-1500:]}"
        idle(platform)

        runs = platform.api("GET", "/runs", params={"disk": "web"}).json()["value"]
        assert sorted((one["operation"], one["state"]) for one in runs) == [("backup", "Succeeded"), ("restore", "Succeeded")]
        with platform.blobs(calm.source) as client:
            copy = client.get_blob_client("vhds", "web-copy.vhd")
            assert copy.download_blob().readall() == bytes(disk.content)
            copy.delete_blob()
        disk.service.close()


def moving():
    """The calls of "From unmanaged to managed without losing a point", in order."""
    text = (REPOSITORY / "docs" / "restore.md").read_text()
    (section,) = re.findall(r"^## From unmanaged to managed .*?(?=^## )", text, re.MULTILINE | re.DOTALL)
    return [commands for commands in of(API, REPOSITORY / "docs" / "restore.md") if "\n".join(commands) in section]


@pytest.mark.timeout(300)
def test_the_way_from_unmanaged_to_managed_loses_no_point(calm, machines, tmp_path, rng):
    """As the section says it, command by command; all points are equal to the disk of their moment."""
    settings = {"CATALOGUE_TABLE": "moving", "HEADS_CONTAINER": "moving", "PLANS_CONTAINER": "movingplans"}
    with Platform(tmp_path, storage=calm, machines=machines, settings=settings) as platform:
        disk = Disk(platform, "moving", 2 * MIB + PAGE)
        disk.write(2 * MIB, vhd_footer(2 * MIB))
        disk.write(0, rng.randbytes(9 * PAGE))
        platform.protect("web", "moving.vhd")
        disk.name = "web"
        disk.back_up()
        vm = machines.make("moving", data={0: platform.disk_url("moving.vhd")}, power="deallocated")
        disk.lease = machines.lease(platform.disk_url("moving.vhd"))
        disk.write(PAGE * 40, rng.randbytes(5 * PAGE))
        variables = {"API": f"{platform.host.origin}/api", "KEY": "any", "VM": vm}
        last, moved = moving()

        def run(commands):
            script = "\n".join(["set -euo pipefail", "sleep() { command sleep 0.2; }", *FUNCTIONS, *commands])
            ended = shell(script, variables, tmp_path, 120)
            assert ended.returncode == 0, f"{commands}: {ended.stdout[-1500:]} {ended.stderr[-1500:]}"
            idle(platform)

        run(last)
        disk.moments[disk.points()[0]["id"]] = bytes(disk.content)
        platform.managed_disk("moving-converted", vhd="moving.vhd", machine="moving")
        run(moved)
        (restore,) = [
            one for one in platform.api("GET", "/runs", params={"disk": "web"}).json()["value"] if one["operation"] == "restore"
        ]
        new = ManagedDisk.adopted(disk, platform.api("GET", f"/runs/{restore['id']}").json())
        new.moments[new.points()[0]["id"]] = bytes(new.content)

        assert machines.source("moving", 0) == new.id
        assert [one["kind"] for one in new.points()] == ["incremental", "restored", "incremental", "full"]
        assert new.read() == bytes(disk.content)
        assert platform.api("GET", "/disks/web").json()["sourceKind"] == "managedDisk"
        new.check_every_point()
        new.close()
        disk.close()
    machines.delete("moving")


def shell(script, variables, folder, seconds):
    """The script as pasted into a shell that has these variables; what it printed, and its status."""
    environment = {**_plain(), **variables, "PATH": path_with_curl(folder)}
    return subprocess.run(
        ["/bin/bash", "-c", script], env=environment, cwd=folder, text=True, capture_output=True, timeout=seconds, check=False
    )


def idle(platform):
    def at_rest():
        runs = platform.api("GET", "/runs", params={"top": 50}).json()["value"]
        return not [one for one in runs if one["state"] in ("NotStarted", "Running", "Waiting")]

    awaited(at_rest, "the end of all runs", timeout_seconds=60)


def test_the_handbooks_calls_end_when_they_are_refused(calm, machines, tmp_path):
    """A shell continues after an error in pasted lines: no endless loop, no traceback, and no run is started."""
    settings = {"CATALOGUE_TABLE": "refusals", "HEADS_CONTAINER": "refusals", "PLANS_CONTAINER": "refusalsplans"}
    chapters = of(API, *CHAPTERS)
    with Platform(tmp_path, storage=calm, machines=machines, settings=settings) as platform:
        variables = {"API": f"{platform.host.origin}/api", "KEY": "any", "VM": "x", "DISK_URL": "https://other.example/a/b"}
        script = "\n".join(["sleep() { command sleep 0.2; }", *(line for commands in chapters for line in commands)])
        ended = shell(script, variables, tmp_path, 60)
        runs = platform.api("GET", "/runs").json()["value"]

    assert "Traceback" not in ended.stderr
    assert ended.stdout.count('"DiskNotFound"') >= 3
    assert runs == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_list_is_listed_whole_and_every_variable_is_set(page):
    """Without `--num-results` the CLI lists 5,000 blobs at most. Each page sets the variables that only it can know."""
    lines = [line for mark, commands in blocks(page) if mark == CLOUD for line in commands]
    for line in lines:
        assert "blob list" not in line or '--num-results "*"' in line, line
    text = "\n".join(lines)
    for name in ("TOMORROW", "SAS", "HASH", "RUN"):
        assert f"${name}" not in text or f"{name}=$(" in text, name
