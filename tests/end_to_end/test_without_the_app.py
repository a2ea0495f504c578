"""The handbook's manual restore with this app gone, call by call, through nothing but the storage service."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from datetime import UTC, datetime, timedelta

import pytest
from azure.core import MatchConditions
from azure.core.exceptions import ResourceExistsError
from azure.storage.blob import ContainerSasPermissions, generate_container_sas

from devhost.platform import REPOSITORY
from devhost.processes import PATIENCE
from tools.cloud import AZ, AZCOPY


def commands():
    """The lines of the handbook's section."""
    section = (REPOSITORY / "docs" / "restore.md").read_text().partition("## With this app gone")[2].partition("\n## ")[0]
    blocks = re.findall(r"```bash\n(.*?)```", section, flags=re.DOTALL)
    return [line for block in blocks for line in block.strip().splitlines() if not line.startswith("#")]


def option(command, name):
    return command[command.index(name) + 1]


def test_the_handbooks_lines_name_the_calls_of_this_test():
    """Each line names what the calls below use."""
    listing, tomorrow, signing, copying, looking, copied = (
        shlex.split(re.sub(r"^SAS=\$\((.*)\)$", r"\1", line)) for line in commands()
    )

    assert tomorrow[0].startswith("TOMORROW=$(date")
    assert copied[:2] == ["azcopy", "copy"]
    assert "?snapshot=$SNAPSHOT&$SAS" in copied[2]
    assert option(copied, "--overwrite") == "false"
    assert listing[:4] == ["az", "storage", "blob", "list"]
    assert option(listing, "--include") == "sm"
    assert "metadata.pagekeeper_source_snapshot" in option(listing, "--query")
    assert signing[:4] == ["az", "storage", "container", "generate-sas"]
    assert option(signing, "--permissions") == "r"
    assert copying[:5] == ["az", "storage", "blob", "copy", "start"]
    assert option(copying, "--destination-if-none-match") == "*"
    assert "?snapshot=$SNAPSHOT&$SAS" in option(copying, "--source-uri")
    assert "--metadata" in copying
    assert looking[:4] == ["az", "storage", "blob", "show"]
    assert "properties.copy.status" in option(looking, "--query")


def test_each_point_is_restored_by_storage_calls_alone(disk, calm, name, rng):
    """List with snapshots and metadata, sign, copy, wait, check: byte for byte, and nothing existing is overwritten."""
    for _ in range(3):
        disk.disturb(rng, 6)
        disk.back_up()
    prefix = "pagekeeper_"
    calm.switch(copies={"mode": "timed", "pendingFromBytes": 1, "pendingMs": 200})
    with disk.platform.blobs(calm.backup) as backups, disk.platform.blobs(calm.source) as sources:
        listed = backups.get_container_client("heads").list_blobs(
            name_starts_with=f"{disk.name}/", include=["snapshots", "metadata"]
        )
        points = {one.metadata[prefix + "source_snapshot"]: one for one in listed if one.snapshot}
        sas = generate_container_sas(
            calm.backup.name, "heads", account_key=calm.backup.key, permission=ContainerSasPermissions(read=True),
            expiry=datetime.now(UTC) + timedelta(days=1),
        )  # fmt: skip
        assert len(points) == 3
        for number, (taken, point) in enumerate(sorted(points.items())):
            restored = sources.get_blob_client("vhds", f"{name}-{number}.vhd")
            uri = f"{calm.backup.blobs}/heads/{point.name}?snapshot={point.snapshot}&{sas}"
            restored.start_copy_from_url(uri, metadata={"restored": disk.name}, match_condition=MatchConditions.IfMissing)
            while (shown := restored.get_blob_properties()).copy.status == "pending":
                pass
            wanted = disk.moments[taken.replace("-", "").replace(":", "").replace(".", "")]
            assert (shown.copy.status, shown.size) == ("success", point.size)
            assert restored.download_blob().readall() == wanted
            assert shown.metadata == {"restored": disk.name}
            with pytest.raises(ResourceExistsError):
                restored.start_copy_from_url(uri, metadata={"restored": "x"}, match_condition=MatchConditions.IfMissing)


def here(line, calm):
    """The line for this emulator: signed with keys, since nobody signs in here, and with its addresses."""
    for account, own in (("BACKUP", calm.backup), ("SOURCE", calm.source)):
        line = line.replace(f'--auth-mode login --account-name "${account}"', f"--connection-string '{own.connection_string}'")
        line = line.replace(
            f'--auth-mode login --as-user --account-name "${account}"', f"--connection-string '{own.connection_string}'"
        )
        line = line.replace(f"https://${account}.blob.core.windows.net", own.blobs)
    return line


@pytest.mark.skipif(
    not AZ.exists() or not AZCOPY.exists(), reason="the Azure CLI and AzCopy were not run: `make cloud` installs them"
)
@pytest.mark.timeout(300)
def test_each_point_is_restored_by_the_handbooks_command_lines(disk, calm, rng, tmp_path):
    """The real Azure CLI and the real AzCopy list, sign, copy and check: byte for byte, and nothing existing is overwritten."""
    disk.disturb(rng, 6)
    disk.back_up()
    listing, tomorrow, signing, copying, looking, copied = (here(line, calm) for line in commands())
    permissions = ContainerSasPermissions(read=True, create=True, write=True, list=True)
    until = datetime.now(UTC) + timedelta(hours=1)
    signed = generate_container_sas(calm.source.name, "vhds", account_key=calm.source.key, permission=permissions, expiry=until)
    names = {"web-restored.vhd": f"{disk.name}-by-cli.vhd", "web-copied.vhd": f"{disk.name}-by-azcopy.vhd"}
    environment = {
        **os.environ, "PATH": f"{tmp_path}:{AZ.parent}:{os.environ['PATH']}", "AZURE_CONFIG_DIR": str(tmp_path / "az"),
        "AZURE_CORE_COLLECT_TELEMETRY": "false", "AZCOPY_LOG_LOCATION": str(tmp_path), "AZCOPY_JOB_PLAN_LOCATION": str(tmp_path),
        "HOME": str(tmp_path),
    }  # fmt: skip
    (tmp_path / "azcopy").symlink_to(AZCOPY)

    def run(*lines, **variables):
        script = "\n".join(["set -euo pipefail", *lines])
        for written, meant in names.items():
            script = script.replace(written, meant)
        return subprocess.run(
            ["/bin/bash", "-c", script],
            env={**environment, **variables},
            capture_output=True,
            text=True,
            timeout=200 * PATIENCE,
            check=False,
        )

    found = run(listing.replace("web/", f"{disk.name}/").replace("--output table", "--output json"))
    assert found.returncode == 0, found.stderr
    (point,) = json.loads(found.stdout)
    chosen = {"BLOB": point["blob"], "SNAPSHOT": point["snapshot"]}
    azcopied = copied.replace('web-copied.vhd"', f'web-copied.vhd?{signed}" --trusted-microsoft-suffixes 127.0.0.1')
    done = run(tomorrow, signing, copying, looking, azcopied, **chosen)

    assert done.returncode == 0, done.stdout + done.stderr
    assert '"status": "success"' in done.stdout
    assert f'"bytes": {point["bytes"]}' in done.stdout
    assert "Final Job Status: Completed" in done.stdout
    with disk.platform.blobs(calm.source) as sources:
        for made in names.values():
            assert sources.get_blob_client("vhds", made).download_blob().readall() == bytes(disk.content), made
    again = run(tomorrow, signing, copying, **chosen)
    assert again.returncode != 0
    assert "BlobAlreadyExists" in again.stderr
