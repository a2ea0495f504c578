"""The account keys are canaries: no place that a person or a table could show has them, or a signature made with them."""

from __future__ import annotations

import json
import re

from tests.disk import PAGE, dump


def test_no_secret_in_history_status_logs_rows_or_answers(disk, platform, calm):
    """After good and failed runs and refused requests there is no key, no signature and no system key."""
    disk.write(0, b"\1" * PAGE)
    run = disk.back_up()
    answers = [
        platform.api("PUT", f"/disks/{disk.name}", {"source": platform.disk_url("x") + f"?sig={calm.source.key}"}).text,
        platform.api("GET", f"/disks/{disk.name}").text,
        platform.api("POST", f"/disks/{disk.name}/backups").text,
        platform.api("GET", f"/runs/{run['id']}").text,
        platform.api("GET", f"/disks/{disk.name}/restore-points").text,
        platform.api("GET", "/health").text,
    ]
    histories = [
        platform.host.call(
            "GET", f"/runtime/webhooks/durabletask/instances/{one['instanceId']}?showHistory=true&showHistoryOutput=true"
        ).text
        for one in platform.host.settled(disk.name)
    ]
    everything = "\n".join([*answers, *histories, platform.host.log.read_text(), json.dumps(str(dump(calm, platform)))])

    for account in (calm.source, calm.backup, calm.state, calm.host):
        assert account.key not in everything
    assert not re.search(r"sig=(?!REDACTED)[A-Za-z0-9%+/]{20}", everything)
    assert "code=" not in "\n".join(answers)
    assert histories
