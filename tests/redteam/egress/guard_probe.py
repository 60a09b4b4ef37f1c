"""Tries to reach things as a user: `<uid> <JSON list of [protocol, address, port]>`; prints what came of
each.

Standard library only: it runs on the machine's own Python, which every user can execute.
"""

import json
import os
import socket
import sys
from concurrent.futures import ThreadPoolExecutor

WAIT_S = 1.0
ECHO = {"icmp": b"\x08\x00\x00\x00\x00\x01\x00\x01", "ipv6-icmp": b"\x80\x00\x00\x00\x00\x01\x00\x01"}


def attempt(probe: tuple[str, str, int]) -> str:
    """Return what answered, or that nothing did."""
    protocol, address, port = probe
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        if protocol in ECHO:
            with socket.socket(family, socket.SOCK_DGRAM, socket.getprotobyname(protocol)) as ping:
                ping.settimeout(WAIT_S)
                ping.sendto(ECHO[protocol], (address, 0))
                ping.recv(100)
                return "answered"
        kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
        with socket.socket(family, kind) as connection:
            connection.settimeout(WAIT_S)
            connection.connect((address, port))
            connection.send(b"x")
            return connection.recv(10).decode() or "closed"
    except OSError:
        return "refused"


def main() -> None:
    """Become the user, then try everything at once."""
    uid = int(sys.argv[1])
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
    probes = json.loads(sys.argv[2])
    with ThreadPoolExecutor(len(probes)) as pool:
        print(json.dumps(list(pool.map(attempt, probes))))


main()
