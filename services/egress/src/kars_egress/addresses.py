"""The addresses that no sandbox may reach: one list for Envoy, the guard rules and `explain`.

Everything that is not plainly public: RFC 6890 special-purpose blocks, and the IPv6 forms that carry an IPv4
address (mapped, compatible, NAT64, 6to4, Teredo), because a gateway would unpack them.
"""

import ipaddress

IPV4 = (
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "224.0.0.0/4",
    "240.0.0.0/4",
)
IPV6 = (
    "::/96",
    "::ffff:0:0/96",
    "::ffff:0:0:0/96",
    "64:ff9b::/96",
    "64:ff9b:1::/48",
    "100::/64",
    "2001::/32",
    "2002::/16",
    "fc00::/7",
    "fe80::/10",
    "fec0::/10",
    "ff00::/8",
)
"""Documentation prefixes are left out: nothing answers there, and tests need public-looking addresses."""

_NETWORKS = tuple(ipaddress.ip_network(block) for block in (*IPV4, *IPV6))


def is_forbidden(address: str) -> bool:
    """Tell whether a literal address is one of those; anything that is no address is."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return True
    return any(parsed in network for network in _NETWORKS if network.version == parsed.version)
