"""Versions and extensions: what a request asks for, and whether it can be served."""

import re
from collections.abc import Iterable, Sequence

from a2a.types import AgentCard

from kars_a2a_gateway.errors import A2AError, Kind

SUPPORTED = "1.0"
_VERSION = re.compile(r"(\d{1,4})\.(\d{1,4})(?:\.\d{1,8})?")
_MAX_EXTENSIONS = 32
_MAX_URI_CHARS = 512


def check_version(asked: str) -> None:
    """Accept 1.0 with any patch.

    Args:
        asked: the header, query parameter or metadata, or what a missing one means: 0.3 in the HTTP bindings,
        while
            the gRPC service's own name (`lf.a2a.v1`) says 1.0.

    Raises:
        A2AError: VERSION_NOT_SUPPORTED, naming what is.
    """
    form = _VERSION.fullmatch(asked)
    if form is None or f"{int(form.group(1))}.{int(form.group(2))}" != SUPPORTED:
        raise A2AError(
            Kind.VERSION_NOT_SUPPORTED,
            f"this endpoint speaks A2A {SUPPORTED}; send A2A-Version: {SUPPORTED}",
            metadata={"supportedVersions": SUPPORTED},
        )


def requested_extensions(headers: Iterable[str]) -> tuple[str, ...]:
    """Return the URIs that a caller asks for.

    Raises:
        A2AError: INVALID_REQUEST for too many, or something that is no URI.
    """
    found = dict.fromkeys(part.strip() for header in headers for part in header.split(",") if part.strip())
    if len(found) > _MAX_EXTENSIONS or any(
        len(uri) > _MAX_URI_CHARS or not uri.isprintable() for uri in found
    ):
        raise A2AError(Kind.INVALID_REQUEST, f"at most {_MAX_EXTENSIONS} extensions may be asked for")
    return tuple(found)


def activated_extensions(requested: Sequence[str], card: AgentCard) -> tuple[str, ...]:
    """Return what is active: asked for and offered.

    Raises:
        A2AError: EXTENSION_SUPPORT_REQUIRED when the card requires one that was not asked for.
    """
    offered = {extension.uri: extension.required for extension in card.capabilities.extensions}
    for uri, required in offered.items():
        if required and uri not in requested:
            raise A2AError(
                Kind.EXTENSION_SUPPORT_REQUIRED,
                "this agent requires an extension; name it in A2A-Extensions",
                metadata={"extension": uri},
            )
    return tuple(uri for uri in requested if uri in offered)
