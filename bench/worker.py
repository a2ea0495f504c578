"""A worker that streams: its processor time for each GiB over TLS, beside the SDK's, and its peak memory with eight activities.

`python -m bench.worker WAY URL GIB ACTIVITIES` is one of them in a process of its own; it prints what it took.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import multiprocessing
import os
import re
import secrets
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from azure.storage.blob import BlobClient
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from backup_core.domain.ranges import GIB, MIB, PUT_BYTES_MAX, ByteRange, DiffRange
from backup_core.protocol.tools import Limits
from bench.page import Section, table, verdict, words
from bench.rig import Disk, rig
from tests.ports.million import peak_bytes

ACTIVITIES, ROUNDS = 8, 3
CPU_GOAL, BYTES_MOST = 0.65, 1.5 * GIB
IN_FLIGHT_BYTES = 2 * ACTIVITIES * Limits().in_flight * PUT_BYTES_MAX
_HEADER = re.compile(rb"\r\n([A-Za-z0-9-]+): ([^\r]*)")
_BODY = secrets.token_bytes(PUT_BYTES_MAX)
_MD5 = base64.b64encode(hashlib.md5(_BODY, usedforsecurity=False).digest())
_VERSION = (
    b'ETag: "0x1"\r\nLast-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\nx-ms-blob-type: PageBlob\r\nx-ms-version: 2021-12-02\r\n'
)


class _Connection(asyncio.Protocol):
    """One connection to a server that reads puts and forgets them, and gives the same 4 MiB for every range."""

    def __init__(self) -> None:
        self._head, self._left, self._answer_to = b"", 0, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self._left:
            self._left -= len(data)
        else:
            self._head += data
            head, end, rest = self._head.partition(b"\r\n\r\n")
            if not end:
                return
            headers = {name.lower(): value for name, value in _HEADER.findall(head)}
            self._answer_to, self._head = self._answer(head, headers), b""
            self._left = int(headers.get(b"content-length", b"0")) - len(rest)
        if self._left == 0:
            self._transport.write(self._answer_to)

    def _answer(self, head: bytes, headers: dict[bytes, bytes]) -> bytes:
        if head.startswith(b"PUT"):
            return b"HTTP/1.1 201 Created\r\n%sx-ms-blob-sequence-number: 1\r\nContent-Length: 0\r\n\r\n" % _VERSION
        if b"comp=pagelist" in head:
            body = b"<PageList><PageRange><Start>0</Start><End>%d</End></PageRange></PageList>" % (64 * GIB - 1)
            return b"HTTP/1.1 200 OK\r\n%sContent-Type: application/xml\r\nContent-Length: %d\r\n\r\n%s" % (
                _VERSION,
                len(body),
                body,
            )
        first, last = map(int, headers[b"x-ms-range"].removeprefix(b"bytes=").split(b"-"))
        size = last + 1 - first
        described = b"Content-Range: bytes %d-%d/%d\r\nContent-Length: %d\r\n" % (first, last, 64 * GIB, size)
        # As the service: sent only where it was requested.
        digest = b"Content-MD5: %s\r\n" % _MD5 if b"x-ms-range-get-content-md5" in headers and size == PUT_BYTES_MAX else b""
        return b"HTTP/1.1 206 Partial Content\r\n%s%s%s\r\n%s" % (_VERSION, described, digest, _BODY[:size])


def _serve(port: Connection, folder: str) -> None:
    async def serve() -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) if folder else None
        if context:
            context.load_cert_chain(Path(folder, "cert.pem"), Path(folder, "key.pem"))
        server = await asyncio.get_running_loop().create_server(_Connection, "127.0.0.1", 0, ssl=context)
        port.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(serve())


def certificate(folder: Path) -> None:
    """A certificate for 127.0.0.1, good for a day, that vouches for itself."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    plain = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(key.private_bytes(*plain))
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))


@contextmanager
def server(folder: str = "") -> Iterator[str]:
    """Its URL; over TLS with the certificate in `folder`."""
    here, there = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(there, folder), daemon=True)
    process.start()
    try:
        if not here.poll(30):
            message = "the server did not start within 30 s"
            raise RuntimeError(message)
        yield f"{'https' if folder else 'http'}://127.0.0.1:{here.recv()}"
    finally:
        process.terminate()
        process.join()


# -- in a process of its own ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Took:
    """The time and memory that a process took."""

    cpu: float
    seconds: float
    before: int
    """Bytes of memory at most, before it copied."""
    added: int


async def _product(url: str, size: int, activities: int) -> Took:
    """The step that copies a shard, so many of them side by side, each for a disk of its own."""
    changes = [DiffRange(ByteRange(0, size // activities), cleared=False)]
    before = peak_bytes()
    async with rig(url, changes, Limits(shard_bytes_max=size, shard_requests_max=10**9, shard_seconds=3600), "stream") as steps:
        copies: list[Disk] = [steps.disk(f"disk{number}") for number in range(activities)]
        for one in copies:
            await one.plan()
        began, cpu = time.monotonic(), time.process_time()
        await asyncio.gather(*(one.copy(0) for one in copies))
        return Took(time.process_time() - cpu, time.monotonic() - began, before, peak_bytes() - before)


def _sdk(url: str, size: int, *, checked: bool) -> Took:
    """azure-storage-blob, one range after the other; `checked` by MD5 both ways, as the product's."""
    before, verified = peak_bytes(), os.environ.get("SSL_CERT_FILE") or True
    source, head = (
        BlobClient.from_blob_url(f"{url}/{name}/disk.vhd?sig=x", connection_verify=verified)
        for name in ("source/vhds", "backup/heads")
    )
    began, cpu = time.monotonic(), time.process_time()
    for at in range(0, size, PUT_BYTES_MAX):
        read = source.download_blob(offset=at, length=PUT_BYTES_MAX, validate_content=checked)
        head.upload_page(read.readall(), at, PUT_BYTES_MAX, validate_content=checked)
    return Took(time.process_time() - cpu, time.monotonic() - began, before, peak_bytes() - before)


# -- measured ---------------------------------------------------------------------------------------------------------


def run(way: str, url: str, size: int, activities: int = 1, folder: str = "") -> Took:
    """One way in a process of its own."""
    environment = os.environ | ({"SSL_CERT_FILE": str(Path(folder, "cert.pem"))} if folder else {})
    command = [sys.executable, "-m", "bench.worker", way, url, f"{size}", f"{activities}"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=900)  # noqa: S603  our own module
    if ended.returncode:
        raise RuntimeError(ended.stderr)
    return Took(**json.loads(ended.stdout))


def section(ways: dict[str, list[Took]], small: Took, large: Took, size: int) -> Section:
    """Processor time and memory."""
    gib, peak = size / GIB, large.before + large.added
    cpu = {way: statistics.median(one.cpu for one in took) / gib for way, took in ways.items()}
    goals = (
        ("CPU of a GiB, s", cpu["product"], "", True),
        ("of the SDK's, which checks nothing", cpu["product"] / cpu["sdk"], f"at most {CPU_GOAL:g}", None),
        ("of the SDK's with `validate_content`", cpu["product"] / cpu["sdk-checked"], f"at most {CPU_GOAL:g}", None),
    )
    rows = [(what, f"{found:.2f}", goal, "" if met else verdict(met=found <= CPU_GOAL)) for what, found, goal, met in goals]
    most = (
        ("memory before, MiB", large.before, None, ""),
        (
            f"added by {ACTIVITIES} activities, {10 * gib:g} GiB",
            large.added,
            IN_FLIGHT_BYTES,
            "at most {}: twice what is in flight",
        ),
        (
            f"added by {ACTIVITIES} activities, {gib:g} GiB",
            small.added,
            large.added * 1.1 + 16 * MIB,
            "about the same for a tenth",
        ),
        ("peak, MiB", peak, BYTES_MOST, "below {}"),
    )
    rows += [
        (
            what,
            f"{found / MIB:.0f}",
            goal.format(f"{limit / MIB:.0f}" if limit else ""),
            verdict(met=found <= limit) if limit else "",
        )
        for what, found, limit, goal in most
    ]
    flat = large.added <= small.added * 1.1 + 16 * MIB
    rows[-2] = (*rows[-2][:3], verdict(met=flat))
    prose = words(
        f"Pages that pass the app: the step that copies a shard, {Limits().in_flight} requests of 4 MiB in flight, "
        f"over TLS to a "
        "server on loopback with a certificate of its own, in another process, that keeps nothing. Each byte is "
        "checked by its MD5, read "
        "and written, and zeros are looked for. The SDK is azure-storage-blob 12, 4 MiB after 4 MiB:"
    )
    command = "```\nhead.upload_page(snapshot.download_blob(offset=at, length=size).readall(), at, size)\n```"
    after = words(
        f"{gib:g} GiB, medians of {ROUNDS}, in turn, each in a process of its own. Memory is without TLS, "
        f"{ACTIVITIES} disks at a "
        "time. The SDK as it is used by default checks nothing; half of the product's time is MD5, which it will not "
        "do without: the "
        "first goal is missed for that, and reached where both check the same."
    )
    met = all(row[-1] != "missed" for row in rows)
    return Section(
        "A worker that streams", f"{prose}\n\n{command}\n\n{after}\n\n{table(('what', 'found', 'goal', ''), rows)}", met
    )


def measure(size: int = GIB) -> Section:
    """Interleaved, each in a process of its own."""
    ways: dict[str, list[Took]] = {"product": [], "sdk": [], "sdk-checked": []}
    with tempfile.TemporaryDirectory(prefix="pagekeeper-bench-") as folder:
        certificate(Path(folder))
        with server(folder) as url:
            for _ in range(ROUNDS):
                for way, took in ways.items():
                    took.append(run(way, url, size, folder=folder))
        with server() as url:
            small, large = (run("product", url, times * size, ACTIVITIES) for times in (1, 10))
    return section(ways, small, large, size)


def main(arguments: list[str]) -> None:
    """One way, in this process."""
    way, url, size, activities = arguments[0], arguments[1], int(arguments[2]), int(arguments[3])
    took: Any = (
        asyncio.run(_product(url, size, activities)) if way == "product" else _sdk(url, size, checked=way == "sdk-checked")
    )
    print(json.dumps(vars(took)))


if __name__ == "__main__":
    main(sys.argv[1:])
