"""Who may call which method: one table a service, checked before any servicer runs.

    AuthorizationTable({
        "kars.policy.v1.PolicyDiscovery/Watch": ["ns/*/sandbox/*"],
        "kars.policy.v1.PolicyDiscovery/GetSigningKeys": [ANY_IDENTITY],
    })

A pattern is a SPIFFE path without its leading slash; `*` stands for exactly one whole segment. A
method that the table does not hold is refused, and so is any identity of another trust domain.
"""

from collections.abc import Iterable, Mapping, Sequence

from kars_common.errors import PermissionDeniedError, UnauthenticatedError
from kars_common.spiffe import SpiffeId

ANY_IDENTITY = "**"
"""Every identity of the server's own trust domain."""

ANYONE = "anyone"
"""Every caller, proven or not. Only for what proves a caller in the first place."""

_HEALTH = ("grpc.health.v1.Health/Check", "grpc.health.v1.Health/Watch", "grpc.health.v1.Health/List")
_REFLECTION = ("grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",)


class AuthorizationTable:
    """Method full names, and the identity patterns that may call each."""

    def __init__(self, rules: Mapping[str, Iterable[str]]) -> None:
        self._rules = {method.lstrip("/"): tuple(patterns) for method, patterns in rules.items()}
        for method, patterns in self._rules.items():
            _check_rule(method, patterns)

    @property
    def methods(self) -> frozenset[str]:
        """Full names (`package.Service/Method`) that the table speaks of."""
        return frozenset(self._rules)

    def patterns(self, method: str) -> Sequence[str]:
        """Return the patterns of one method; empty when the table does not hold it."""
        return self._rules.get(method.lstrip("/"), ())

    def with_standard_services(self, *, anyone: bool) -> "AuthorizationTable":
        """Return this table plus health and, unless `anyone`, reflection for operators and services."""
        standard: dict[str, Iterable[str]] = {
            method: [ANYONE if anyone else ANY_IDENTITY] for method in _HEALTH
        }
        if not anyone:
            standard |= {method: ["operator/*", "svc/*"] for method in _REFLECTION}
        return AuthorizationTable({**standard, **self._rules})

    def check(self, method: str, caller: SpiffeId | None, trust_domain: str) -> None:
        """Pass, or refuse a call.

        Args:
            method: full name of the method.
            caller: the identity that TLS proved; None when it proved none.
            trust_domain: the server's own.

        Raises:
            PermissionDeniedError: `method_not_authorized` for a method without a rule,
                `caller_not_authorized` for an identity that no pattern names,
                `trust_domain_not_accepted` for one of elsewhere.
            UnauthenticatedError: `client_certificate_required`.
        """
        patterns = self.patterns(method)
        if not patterns:
            raise PermissionDeniedError("method_not_authorized", f"no rule lets anyone call {method}")
        if ANYONE in patterns:
            return
        if caller is None:
            raise UnauthenticatedError("client_certificate_required", f"{method} needs a proven identity")
        if caller.trust_domain != trust_domain:
            raise PermissionDeniedError(
                "trust_domain_not_accepted", f"callers must be of {trust_domain}, got {caller.trust_domain}"
            )
        if not any(matches(pattern, caller) for pattern in patterns):
            raise PermissionDeniedError("caller_not_authorized", f"{caller.path} may not call {method}")


def matches(pattern: str, identity: SpiffeId) -> bool:
    """Tell whether a pattern names an identity (the trust domain aside)."""
    if pattern == ANY_IDENTITY:
        return True
    wanted = pattern.split("/")
    return len(wanted) == len(identity.segments) and all(
        part in ("*", segment) for part, segment in zip(wanted, identity.segments, strict=True)
    )


def _check_rule(method: str, patterns: Sequence[str]) -> None:
    service, slash, name = method.partition("/")
    if not (service and slash and name) or "/" in name:
        raise ValueError(f"method must be package.Service/Method, got {method!r}")
    if not patterns:
        raise ValueError(f"{method} has an empty rule; leave it out to refuse it")
    for pattern in patterns:
        if pattern in (ANY_IDENTITY, ANYONE):
            continue
        if pattern.startswith("/") or any(
            not part or ("*" in part and part != "*") for part in pattern.split("/")
        ):
            raise ValueError(f"pattern of {method} must be whole segments or *, got {pattern!r}")
