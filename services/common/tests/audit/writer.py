"""A process that appends until it is killed; prints each sequence number once its record was written.

Run as `python writer.py <directory> <durable|written|staged>`: waits for the disk, for the kernel, or stages
each record and waits for the disk.
"""

import asyncio
import sys

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from kars_common.audit import AuditLog


async def write(directory: str, mode: str) -> None:
    key = Ed25519PrivateKey.from_private_bytes(b"log key for tests, 32 bytes long")
    log = AuditLog.open(directory, "kars.local/ns/team-a/sandbox/quickstart", key, max_segment_bytes=20_000)
    while True:
        seq = log.append(
            "call.settled",
            {"call": f"c{log.size}", "tokens": log.size, "pad": "x" * (log.size % 300)},
            staged=mode == "staged",
        )
        if mode != "written":
            await log.durable(seq)
        sys.stdout.write(f"{seq}\n")
        sys.stdout.flush()


asyncio.run(write(sys.argv[1], sys.argv[2]))
