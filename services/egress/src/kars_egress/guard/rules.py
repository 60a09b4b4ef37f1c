"""Renders the guard for nftables, and the same policy for iptables with ip6tables.

In a pod the containers share a namespace, so who may talk is decided by user id: the agent reaches the doors
on the loop-back and nothing else, in both address families; the proxy reaches public addresses on the allowed
ports and one resolver; every other user reaches nothing. Closed before the first rule that allows. Must go
with it: agents without NET_RAW and NET_ADMIN, no setuid programs, no socket families beyond inet and unix.
"""

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from kars_common.errors import InvalidInputError

from kars_egress import addresses

PROXY_PORT = 3128
CAPTURE_HTTP_PORT = 8480
CAPTURE_TLS_PORT = 8443


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """Who is who in a pod."""

    agent_uid: int
    proxy_uid: int
    resolver: str
    """Address of the one name server that the proxy asks, port 53."""
    ports: tuple[int, ...] = (80, 443)
    """Ports that the proxy may connect to; those of the allowlist."""
    agent_ports: tuple[int, ...] = ()
    """Ports on the loop-back that agents use among themselves, such as a tool server's."""

    def __post_init__(self) -> None:
        if self.agent_uid == self.proxy_uid or not all(
            0 < uid < 2**31 for uid in (self.agent_uid, self.proxy_uid)
        ):
            raise InvalidInputError(
                "guard_invalid", "agent and proxy need user ids of their own, and not root's"
            )
        try:
            ipaddress.ip_address(self.resolver)
        except ValueError as exc:
            raise InvalidInputError("guard_invalid", "the resolver must be an address") from exc
        if not self.ports or not all(0 < port < 65536 for port in (*self.ports, *self.agent_ports)):
            raise InvalidInputError("guard_invalid", "ports are 1 to 65535")

    @property
    def doors(self) -> tuple[int, ...]:
        """Ports on the loop-back that the agent may connect to."""
        return (PROXY_PORT, CAPTURE_HTTP_PORT, CAPTURE_TLS_PORT, *self.agent_ports)


def render_nftables(guard: Guard) -> str:
    """Return one transaction for `nft -f`: both families at once, or nothing."""
    agent, proxy = guard.agent_uid, guard.proxy_uid
    to_resolver = f"{'ip6' if ':' in guard.resolver else 'ip'} daddr {guard.resolver}"
    refuse = "counter reject with icmpx admin-prohibited"
    discovery = "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert"
    lines = [
        "add table inet egress_guard",
        "delete table inet egress_guard",
        "table inet egress_guard {",
        "  chain nat_out {",
        "    type nat hook output priority -100; policy accept;",
        f"    meta skuid != {agent} return",
        f'    meta nfproto ipv4 oifname != "lo" tcp dport 80 redirect to :{CAPTURE_HTTP_PORT}',
        f'    meta nfproto ipv4 oifname != "lo" tcp dport 443 redirect to :{CAPTURE_TLS_PORT}',
        "  }",
        "  chain out {",
        "    type filter hook output priority filter; policy drop;",
        '    oifname "lo" ct state established,related accept',
        f'    meta skuid {proxy} oifname "lo" accept',
        f"    meta skuid {proxy} {to_resolver} meta l4proto {{ tcp, udp }} th dport 53 accept",
        f"    meta skuid {proxy} ip daddr {{ {_listed(addresses.IPV4)} }} {refuse}",
        f"    meta skuid {proxy} ip6 daddr {{ {_listed(addresses.IPV6)} }} {refuse}",
        f"    meta skuid {proxy} tcp dport {{ {_listed(guard.ports)} }} accept",
        f"    meta skuid {proxy} ct state established,related accept",
        # No device here: what nat redirected still shows its first one.
        f"    meta skuid {agent} ip daddr 127.0.0.1 tcp dport {{ {_listed(guard.doors)} }} accept",
        f'    meta skuid {agent} limit rate 5/second burst 10 packets log prefix "egress-guard " flags skuid',
        f"    meta skuid {agent} {refuse}",
        f"    {discovery}, nd-router-solicit }} ip6 hoplimit 255 accept",
        "    counter drop",
        "  }",
        "  chain in {",
        "    type filter hook input priority filter; policy drop;",
        '    iifname "lo" accept',
        "    ct state established,related accept",
        f"    {discovery}, nd-router-advert }} ip6 hoplimit 255 accept",
        "  }",
        "}",
    ]
    return "\n".join(lines) + "\n"


def render_iptables(guard: Guard) -> tuple[str, str]:
    """Return the same policy for `iptables-restore` and `ip6tables-restore`; each is one transaction."""
    agent, proxy = (f"-m owner --uid-owner {uid}" for uid in (guard.agent_uid, guard.proxy_uid))
    nat = [
        "*nat",
        ":OUTPUT ACCEPT [0:0]",
        f"-A OUTPUT ! -o lo -p tcp {agent} --dport 80 -j REDIRECT --to-ports {CAPTURE_HTTP_PORT}",
        f"-A OUTPUT ! -o lo -p tcp {agent} --dport 443 -j REDIRECT --to-ports {CAPTURE_TLS_PORT}",
        "COMMIT",
    ]
    four = _filter(guard, agent, proxy, addresses.IPV4, "icmp-admin-prohibited", version=4)
    six = _filter(guard, agent, proxy, addresses.IPV6, "icmp6-adm-prohibited", version=6)
    return "\n".join([*nat, *four, ""]), "\n".join([*six, ""])


def _filter(
    guard: Guard, agent: str, proxy: str, forbidden: Iterable[str], reject: str, *, version: int
) -> list[str]:
    refuse = f"-j REJECT --reject-with {reject}"
    doors = [f"-A OUTPUT -d 127.0.0.1 -p tcp {agent} --dport {port} -j ACCEPT" for port in guard.doors]
    resolver = [
        f"-A OUTPUT -d {guard.resolver} -p {protocol} --dport 53 {proxy} -j ACCEPT"
        for protocol in ("udp", "tcp")
    ]
    discovery = [
        f"-A {chain} -p ipv6-icmp --icmpv6-type {kind} -m hl --hl-eq 255 -j ACCEPT"
        for chain, kinds in (("INPUT", (134, 135, 136)), ("OUTPUT", (133, 135, 136)))
        for kind in kinds
    ]
    return [
        "*filter",
        ":INPUT DROP [0:0]",
        ":FORWARD DROP [0:0]",
        ":OUTPUT DROP [0:0]",
        "-A INPUT -i lo -j ACCEPT",
        "-A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT",
        "-A OUTPUT -o lo -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT",
        *(doors if version == 4 else ()),
        f"-A OUTPUT {agent} {refuse}",
        f"-A OUTPUT -o lo {proxy} -j ACCEPT",
        *(resolver if (version == 6) == (":" in guard.resolver) else ()),
        *(f"-A OUTPUT -d {block} {proxy} {refuse}" for block in forbidden),
        *(f"-A OUTPUT -p tcp --dport {port} {proxy} -j ACCEPT" for port in guard.ports),
        f"-A OUTPUT {proxy} -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT",
        *(discovery if version == 6 else ()),
        "COMMIT",
    ]


def _listed(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))
