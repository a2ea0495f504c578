"""The README's way to restore a point with this app gone, call by call, by nothing but the storage service."""

from __future__ import annotations

import re
import shlex
from datetime import UTC, datetime, timedelta

import pytest
from azure.core import MatchConditions
from azure.core.exceptions import ResourceExistsError
from azure.storage.blob import ContainerSasPermissions, generate_container_sas

from devhost.platform import REPOSITORY


def commands():
    """The `az` lines of the README's section, as argument lists."""
    section = (REPOSITORY / "README.md").read_text().partition("### With this app gone")[2].partition("\n## ")[0]
    block = re.search(r"```bash\n(.*?)```", section, flags=re.DOTALL)[1]
    return [shlex.split(line) for line in block.strip().splitlines() if not line.startswith("#")]


def option(command, name):
    return command[command.index(name) + 1]


def test_the_lines_are_those_the_test_follows():
    """Parsed, not run: no Azure CLI talks to an emulator of this kind. Each names what the calls below use."""
    listing, signing, copying, looking = commands()

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


def test_each_point_comes_back_by_storage_calls_alone(disk, calm, name, rng):
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
