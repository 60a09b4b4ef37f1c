"""The kinds that this controller serves. A new kind is one module and one entry here."""

from difflib import get_close_matches

from kars_common.errors import InvalidInputError

from kars_controller.api_types.auth_config import AUTH_CONFIG
from kars_controller.api_types.base import Kind
from kars_controller.api_types.inference_policy import INFERENCE_POLICY
from kars_controller.api_types.pairing import KARS_PAIRING
from kars_controller.api_types.sandbox import KARS_SANDBOX
from kars_controller.api_types.tool_policy import TOOL_POLICY
from kars_controller.api_types.trust_graph import TRUST_GRAPH

KINDS: tuple[Kind, ...] = (
    KARS_SANDBOX,
    INFERENCE_POLICY,
    TOOL_POLICY,
    TRUST_GRAPH,
    KARS_PAIRING,
    AUTH_CONFIG,
)

_BY_NAME = {kind.name: kind for kind in KINDS}
_BY_ALIAS = {
    alias.lower(): kind
    for kind in KINDS
    for alias in (kind.name, kind.plural, f"{kind.plural}.kars.azure.com", *kind.short_names)
}


def kind_named(name: str) -> Kind | None:
    """Return the kind of exactly this name, as documents write it."""
    return _BY_NAME.get(name)


def find_kind(alias: str) -> Kind:
    """Return the kind that a person means by name, plural or short name, in any case.

    Raises:
        InvalidInputError: `kind_unknown`, with what is served.
    """
    kind = _BY_ALIAS.get(alias.strip().lower())
    if kind is None:
        raise InvalidInputError(
            "kind_unknown", f"unknown kind {alias[:80]!r}{suggest(alias, _BY_ALIAS)}; {served()}"
        )
    return kind


def served() -> str:
    """Return the kinds as a phrase for messages."""
    return "served: " + ", ".join(f"{kind.name} ({', '.join(kind.short_names)})" for kind in KINDS)


def suggest(given: str, known: object) -> str:
    """Return ` (did you mean x?)` for the closest known name, or nothing."""
    names = {str(name).lower(): str(name) for name in known}  # type: ignore[attr-defined]
    close = get_close_matches(given.lower(), list(names), n=1, cutoff=0.6)
    return f" (did you mean {names[close[0]]}?)" if close else ""
