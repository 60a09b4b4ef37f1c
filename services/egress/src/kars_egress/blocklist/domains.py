"""A set of domains that covers everything below each, and its form for Envoy's domain trie."""

from collections.abc import Iterable

from google.protobuf.message import Message
from kars.egress.envoy import route_pb2

from kars_egress.policy.hosts import Host
from kars_egress.xds import types

_RBAC = "envoy.extensions.filters.http.rbac.v3.RBAC"
_ACTION = "envoy.config.rbac.v3.Action"
_INPUT = "envoy.type.matcher.v3.HttpRequestHeaderMatchInput"
_TRIE = "xds.type.matcher.v3.ServerNameMatcher"
_NOBODY = "blocklist-is-empty.invalid"
"""A trie must hold something."""


class DomainSet:
    """Domains in canonical form; a domain below another is left out, for it says nothing more."""

    def __init__(self, domains: Iterable[str] = ()) -> None:
        self._domains = frozenset(domains)

    def __len__(self) -> int:
        return len(self._domains)

    def match(self, host: Host) -> str | None:
        """Return the listed domain that covers a host."""
        name = host.text
        while name:
            if name in self._domains:
                return name
            _, _, name = name.partition(".")
        return None

    def compile(self) -> bytes:
        """Return the filter that refuses them, as the resource that Envoy asks for by name."""
        domains = sorted(self._domains) or [_NOBODY]
        deny = _on_match("blocklist", 1)
        # Envoy's `*.a.test` does not cover `a.test`: both are written.
        both = [form for domain in domains for form in (domain, f"*.{domain}")]
        trie = route_pb2.ServerNameMatcher(
            domain_matchers=[route_pb2.ServerNameMatcher.DomainMatcher(domains=both, on_match=deny)]
        )
        tree = route_pb2.Matcher.MatcherTree(
            input=_extension(
                "host", _INPUT, route_pb2.HttpRequestHeaderMatchInput(header_name=types.HOST_HEADER)
            ),
            custom_match=_extension("domains", _TRIE, trie),
        )
        matcher = route_pb2.Matcher(matcher_tree=tree, on_no_match=_on_match("not-listed", 0))
        rbac = types.any_of(_RBAC, route_pb2.RbacHttp(matcher=matcher))
        return route_pb2.TypedExtensionConfig(
            name=types.BLOCKLIST_FILTER, typed_config=rbac
        ).SerializeToString(deterministic=True)


def _on_match(name: str, action: int) -> route_pb2.Matcher.OnMatch:
    return route_pb2.Matcher.OnMatch(
        action=_extension(name, _ACTION, route_pb2.RbacAction(name=name, action=action))
    )


def _extension(name: str, kind: str, message: Message) -> route_pb2.TypedExtensionConfig:
    return route_pb2.TypedExtensionConfig(name=name, typed_config=types.any_of(kind, message))
