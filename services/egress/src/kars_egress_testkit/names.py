"""The name server of the world: a fixed zone, names that rebind, and a record of every question."""

import socket
import threading
from collections import defaultdict

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

from kars_egress_testkit.world import PUBLIC, PUBLIC_2, PUBLIC_6, RESOLVER, Namespace

ZONE4 = {
    "api.allowed.test": [PUBLIC],
    "www.wild.test": [PUBLIC],
    "deep.er.wild.test": [PUBLIC],
    "other.test": [PUBLIC_2],
    "hidden.test": [PUBLIC_2],
    "pending.test": [PUBLIC],
    "learn.test": [PUBLIC],
    "evil.test": [PUBLIC],
    "sub.evil.test": [PUBLIC],
    "evil-in.wild.test": [PUBLIC],
    "loop.wild.test": ["127.0.0.1"],
    "zero.wild.test": ["0.0.0.0"],
    "ten.wild.test": ["10.9.0.5"],
    "meta.wild.test": ["169.254.169.254"],
    "cgnat.wild.test": ["100.64.0.9"],
    "lan.wild.test": ["192.168.7.7"],
    "seventeen.wild.test": ["172.16.3.3"],
    "ietf.wild.test": ["192.0.0.8"],
    "bench.wild.test": ["198.18.9.9"],
    "multicast.wild.test": ["224.0.0.1"],
    "broadcast.wild.test": ["255.255.255.255"],
    "dead-then-ten.wild.test": ["203.0.113.99", "10.9.0.5"],
    "dead-then-loop.wild.test": ["203.0.113.98", "127.0.0.1"],
    "public-and-ten.wild.test": [PUBLIC, "10.9.0.5"],
}
ZONE6 = {
    "six.wild.test": [PUBLIC_6],
    "loop6.wild.test": ["::1"],
    "any6.wild.test": ["::"],
    "mapped-loop.wild.test": ["::ffff:127.0.0.1"],
    "mapped-meta.wild.test": ["::ffff:169.254.169.254"],
    "compatible.wild.test": ["::127.0.0.1"],
    "ula.wild.test": ["fd00::5"],
    "link6.wild.test": ["fe80::1"],
    "nat64.wild.test": ["64:ff9b::a9fe:a9fe"],
    "sixtofour.wild.test": ["2002:a09:5::1"],
    "dead6-then-meta.wild.test": ["2001:db8::99"],
}
ZONE4["dead6-then-meta.wild.test"] = ["169.254.169.254"]
ALIASES = {"alias.wild.test": "ten.wild.test", "alias-out.wild.test": "other.test"}


class NameServer:
    """Answers on UDP at the world's resolver address."""

    def __init__(self, world: Namespace) -> None:
        """Listen and answer until `close`."""
        self.asked: list[tuple[str, str]] = []
        self._counts: dict[tuple[str, str], int] = defaultdict(int)
        self._socket = world.run(self._listen)
        self._thread = threading.Thread(target=self._serve, name="name server", daemon=True)
        self._thread.start()

    def asked_for(self, name: str) -> int:
        """Return how often a name, or one below it, was asked for."""
        return sum(1 for asked, _ in self.asked if asked == name or asked.endswith(f".{name}"))

    def close(self) -> None:
        """Stop."""
        self._socket.close()

    @staticmethod
    def _listen() -> socket.socket:
        listening = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        listening.bind(RESOLVER)
        listening.settimeout(0.5)
        return listening

    def _serve(self) -> None:
        while True:
            try:
                data, peer = self._socket.recvfrom(4096)
            except TimeoutError:
                continue
            except OSError:
                return
            self._socket.sendto(self._answer(dns.message.from_wire(data)).to_wire(), peer)

    def _answer(self, query: dns.message.Message) -> dns.message.Message:
        question = query.question[0]
        name = question.name.to_text().rstrip(".").lower()
        kind = dns.rdatatype.to_text(question.rdtype)
        self.asked.append((name, kind))
        reply = dns.message.make_response(query)
        reply.flags |= dns.flags.RA
        owner = name
        if name in ALIASES:
            reply.answer.append(dns.rrset.from_text(f"{name}.", 1, "IN", "CNAME", f"{ALIASES[name]}."))
            owner = ALIASES[name]
        addresses = self._rebinding(name, kind) if name.startswith("rebind") else _zone(kind).get(owner, [])
        if addresses:
            reply.answer.append(dns.rrset.from_text(f"{owner}.", 1, "IN", kind, *addresses))
        elif owner not in ZONE4 and owner not in ZONE6 and not name.startswith("rebind"):
            reply.set_rcode(dns.rcode.NXDOMAIN)
        return reply

    def _rebinding(self, name: str, kind: str) -> list[str]:
        """Public at first, private ever after."""
        if kind != "A":
            return []
        self._counts[name, kind] += 1
        return [PUBLIC] if self._counts[name, kind] == 1 else ["127.0.0.1"]


def _zone(kind: str) -> dict[str, list[str]]:
    return {"A": ZONE4, "AAAA": ZONE6}.get(kind, {})
