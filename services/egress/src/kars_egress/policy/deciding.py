"""Which rule decides a request, and why: the same order as Envoy's filters, in one function.

`explain` answers operators, external authorization uses it in learn mode, and a test compares it with the
real Envoy for every URL of the corpus. It sees no resolved address: that rule is Envoy's, at connect time.
"""

from collections.abc import Callable
from dataclasses import dataclass

from kars_egress.addresses import is_forbidden
from kars_egress.policy.entries import is_high_risk
from kars_egress.policy.hosts import DEFAULT_PORTS, Host, HostKind, Target
from kars_egress.policy.sandboxes import SandboxPolicy

Listed = Callable[[Host], str | None]
"""Returns the listed domain that covers a host, or None."""

_ASK = "ask an operator: kars egress -n {namespace} {name} approve {host}:{port}{scheme} --reason '<why>'"
_NOTHING = "this cannot be approved; use another destination"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A decision and its cause."""

    allowed: bool
    reason: str
    rule: str
    message: str
    next_step: str = ""


def deny(reason: str, rule: str, message: str, next_step: str = "") -> Verdict:
    """Return a refusal."""
    return Verdict(allowed=False, reason=reason, rule=rule, message=message, next_step=next_step)


def _allow(reason: str, rule: str, message: str) -> Verdict:
    return Verdict(allowed=True, reason=reason, rule=rule, message=message)


def decide(policy: SandboxPolicy, target: Target, listed: Listed, now_s: float) -> Verdict:
    """Decide one request; first rule wins."""
    host = target.host
    match = listed(host)
    if match is not None:
        return deny("blocklist", match, f"{host.text} is on the blocklist", _NOTHING)
    for entry in policy.entries:
        if entry.allows(target):
            return _allow("allowlist", str(entry), "the allowlist names it")
    for approval in policy.approvals:
        if approval.expires_s > now_s and any(entry.allows(target) for entry in approval.entries):
            return _allow("approval", approval.id, f"approved by {approval.granted_by}")
    if policy.learning_until_s > now_s:
        return decide_learning(target)
    return _refused(policy, target)


def decide_learning(target: Target) -> Verdict:
    """Decide what neither blocklist nor allowlist speaks about while a sandbox is learning."""
    if target.host.kind is HostKind.ADDRESS:
        return _address(target.host)
    if is_high_risk(target.host):
        return _high_risk(target.host)
    if target.port != DEFAULT_PORTS[target.scheme]:
        message = f"learning covers port {DEFAULT_PORTS[target.scheme]} only"
        return deny("port_not_learned", "", message, "ask an operator to allow the port by name")
    return _allow("learning", "", "the sandbox is learning; this is recorded")


def _refused(policy: SandboxPolicy, target: Target) -> Verdict:
    if target.host.kind is HostKind.ADDRESS:
        return _address(target.host)
    if is_high_risk(target.host):
        return _high_risk(target.host)
    step = _ASK.format(
        namespace=policy.sandbox.namespace,
        name=policy.sandbox.name,
        host=target.host.text,
        port=target.port,
        scheme=" --scheme http" if target.scheme == "http" else "",
    )
    near = [entry for entry in policy.entries if entry.pattern.matches(target.host)]
    if near:
        message = f"the host is allowed, but only as {', '.join(map(str, near[:5]))}"
        return deny("not_in_allowlist", str(near[0]), message, step)
    return deny("not_in_allowlist", "", f"{target.host.text} is not on the allowlist", step)


def _address(host: Host) -> Verdict:
    kind = "a private or special address" if is_forbidden(host.text) else "a bare address"
    return deny("address_not_allowed", host.text, f"{kind} cannot be reached; use a name", _NOTHING)


def _high_risk(host: Host) -> Verdict:
    tld = host.labels[-1]
    return deny("high_risk_tld", f".{tld}", f"nothing below .{tld} can be reached", _NOTHING)
