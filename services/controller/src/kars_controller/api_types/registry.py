"""The kinds of the API, and those that this controller serves. A new kind is one module and one entry here.

A kind that no reconciler enforces yet is known (its schema is published and checked) and refused.
"""

from difflib import get_close_matches

from kars_common.errors import InvalidInputError

from kars_controller.api_types.a2a_agent import A2A_AGENT
from kars_controller.api_types.auth_config import AUTH_CONFIG
from kars_controller.api_types.base import Kind
from kars_controller.api_types.egress_approval import EGRESS_APPROVAL
from kars_controller.api_types.evaluation import KARS_EVAL
from kars_controller.api_types.inference_policy import INFERENCE_POLICY
from kars_controller.api_types.mcp_server import MCP_SERVER
from kars_controller.api_types.memory import KARS_MEMORY
from kars_controller.api_types.pairing import KARS_PAIRING
from kars_controller.api_types.sandbox import KARS_SANDBOX
from kars_controller.api_types.sre_action import SRE_ACTION
from kars_controller.api_types.tool_policy import TOOL_POLICY
from kars_controller.api_types.trust_graph import TRUST_GRAPH

ALL_KINDS: tuple[Kind, ...] = (
    KARS_SANDBOX,
    INFERENCE_POLICY,
    TOOL_POLICY,
    KARS_MEMORY,
    MCP_SERVER,
    A2A_AGENT,
    KARS_EVAL,
    EGRESS_APPROVAL,
    TRUST_GRAPH,
    SRE_ACTION,
    AUTH_CONFIG,
    KARS_PAIRING,
)
"""Every kind of the API."""

KINDS: tuple[Kind, ...] = tuple(kind for kind in ALL_KINDS if not kind.not_served)
"""The kinds that are served."""

_BY_NAME = {kind.name: kind for kind in ALL_KINDS}
_BY_ALIAS = {
    alias.lower(): kind
    for kind in ALL_KINDS
    for alias in (kind.name, kind.plural, f"{kind.plural}.kars.azure.com", *kind.short_names)
}


def kind_named(name: str) -> Kind | None:
    """Return the kind of exactly this name, served or not, as documents write it."""
    return _BY_NAME.get(name)


def find_kind(alias: str) -> Kind:
    """Return the served kind that a person means by name, plural or short name, in any case.

    Raises:
        InvalidInputError: `kind_unknown`, with what is served; `kind_not_served`, with what to do.
    """
    kind = _BY_ALIAS.get(alias.strip().lower())
    if kind is None:
        raise InvalidInputError(
            "kind_unknown", f"unknown kind {alias[:80]!r}{suggest(alias, _BY_ALIAS)}; {served()}"
        )
    check_served(kind)
    return kind


def check_served(kind: Kind) -> None:
    """Refuse a kind that nothing would enforce.

    Raises:
        InvalidInputError: `kind_not_served`, with what to do.
    """
    if kind.not_served:
        raise InvalidInputError(
            "kind_not_served", f"{kind.name} is not served yet: {kind.not_served}; {served()}"
        )


def served() -> str:
    """Return the kinds as a phrase for messages."""
    return "served: " + ", ".join(f"{kind.name} ({', '.join(kind.short_names)})" for kind in KINDS)


def suggest(given: str, known: object) -> str:
    """Return ` (did you mean x?)` for the closest known name, or nothing."""
    names = {str(name).lower(): str(name) for name in known}  # type: ignore[attr-defined]
    close = get_close_matches(given.lower(), list(names), n=1, cutoff=0.6)
    return f" (did you mean {names[close[0]]}?)" if close else ""
