"""Domain values to and from the messages of `kars.egress.v1`."""

from collections.abc import Iterable

from google.protobuf.timestamp_pb2 import Timestamp
from kars.egress.v1 import egress_pb2
from kars_common.errors import FieldViolation, InvalidInputError

from kars_egress.blocklist.feeds import FeedState
from kars_egress.decisions.lines import Decision
from kars_egress.decisions.targets import Seen
from kars_egress.policy.entries import Entry

_SCHEMES = {
    egress_pb2.SCHEME_UNSPECIFIED: "https",
    egress_pb2.SCHEME_HTTPS: "https",
    egress_pb2.SCHEME_HTTP: "http",
}
_SCHEME_VALUES = {"https": egress_pb2.SCHEME_HTTPS, "http": egress_pb2.SCHEME_HTTP}


def entries(targets: Iterable[egress_pb2.AllowedTarget]) -> tuple[Entry, ...]:
    """Return the entries that targets stand for.

    Raises:
        InvalidInputError: `egress_policy_invalid` with one violation for each wrong target.
    """
    built: list[Entry] = []
    violations: list[FieldViolation] = []
    for index, item in enumerate(targets):
        try:
            built.append(
                Entry.build(
                    item.host,
                    port=item.port,
                    scheme=_SCHEMES.get(item.scheme, "unknown"),
                    methods=tuple(item.methods),
                    paths=tuple(item.path_prefixes),
                    upstream_tls=item.upstream_tls,
                    credential=item.credential,
                )
            )
        except InvalidInputError as error:
            violations.append(FieldViolation(f"targets[{index}]", f"{error.message} ({error.reason})"))
    if violations:
        text = "; ".join(f"{item.field}: {item.description}" for item in violations[:3])
        raise InvalidInputError(
            "egress_policy_invalid", f"the allowlist is refused as a whole: {text}", violations=violations
        )
    return tuple(built)


def target(entry: Entry) -> egress_pb2.AllowedTarget:
    """Return the target that an entry stands for."""
    return egress_pb2.AllowedTarget(
        host=str(entry.pattern),
        port=entry.port,
        scheme=_SCHEME_VALUES[entry.scheme],
        methods=entry.methods,
        path_prefixes=entry.paths,
        upstream_tls=entry.upstream_tls,
        credential=entry.credential,
    )


def seen(item: Seen) -> egress_pb2.SeenTarget:
    """Return one row of a table."""
    return egress_pb2.SeenTarget(
        host=item.host,
        port=item.port,
        reason=item.reason,
        count=item.count,
        first_seen=stamp(item.first_s),
        last_seen=stamp(item.last_s),
    )


def decision(item: Decision) -> egress_pb2.Decision:
    """Return one decision."""
    return egress_pb2.Decision(
        id=item.id,
        time=stamp(item.time_s),
        sandbox=item.sandbox,
        method=item.method,
        host=item.host,
        allowed=item.allowed,
        reason=item.reason,
        status=item.status,
        bytes_sent=item.sent,
        bytes_received=item.received,
    )


def feed(state: FeedState) -> egress_pb2.FeedStatus:
    """Return the state of one feed."""
    return egress_pb2.FeedStatus(
        name=state.name,
        domains=state.domains,
        fetched_at=stamp(state.fetched_s) if state.fetched_s else None,
        digest=state.digest,
        problem=state.problem,
    )


def stamp(moment_s: float) -> Timestamp:
    """Return a moment."""
    found = Timestamp()
    found.FromNanoseconds(int(moment_s * 1e9))
    return found
