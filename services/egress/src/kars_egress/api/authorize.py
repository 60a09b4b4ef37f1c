"""External authorization: what static configuration cannot express, which is learning.

Only the routes of a learning sandbox ask. The sandbox is named by the route, not by the request; a sandbox's
own Envoy can ask for itself only. Anything unclear is refused, and Envoy refuses when there is no answer.
"""

import json
from collections.abc import Callable
from typing import Any

from kars.egress.envoy import ext_authz_pb2, ext_authz_pb2_grpc
from kars_common.errors import KarsError, PermissionDeniedError
from kars_common.rpc import caller

from kars_egress.enforcement import Enforcement
from kars_egress.policy.deciding import Listed, Verdict, decide, deny
from kars_egress.policy.hosts import DEFAULT_PORTS, Target, split_authority
from kars_egress.policy.sandboxes import SandboxId

_DENIED = 7


class AuthorizationServicer(ext_authz_pb2_grpc.AuthorizationServicer):
    """Answers Envoy."""

    def __init__(self, enforcement: Enforcement, listed: Listed, clock_s: Callable[[], float]) -> None:
        self._enforcement = enforcement
        self._listed = listed
        self._clock_s = clock_s

    async def Check(  # noqa: N802 - named by Envoy
        self,
        request: ext_authz_pb2.CheckRequest,
        context: Any,  # noqa: ANN401
    ) -> ext_authz_pb2.CheckResponse:
        """Allow or refuse one request."""
        attributes = request.attributes
        sandbox = SandboxId.parse(attributes.context_extensions["sandbox"])
        own = caller(context).sandbox_ref
        if own is not None and SandboxId(*own) != sandbox:
            raise PermissionDeniedError("sandbox_not_own", "an Envoy asks for its own sandbox only")
        verdict, host = self._decide(sandbox, attributes.request.http)
        if verdict.allowed:
            return ext_authz_pb2.CheckResponse(
                status=ext_authz_pb2.Status(code=0), ok_response=ext_authz_pb2.OkHttpResponse()
            )
        return _refusal(verdict, host)

    def _decide(self, sandbox: SandboxId, http: ext_authz_pb2.HttpRequest) -> tuple[Verdict, str]:
        scheme = "https" if http.method == "CONNECT" else "http"
        try:
            host, port = split_authority(http.host, DEFAULT_PORTS[scheme])
            policy = self._enforcement.get(sandbox)
        except KarsError as error:
            return deny(error.reason, "", error.message), ""
        target = Target(scheme, host, port, http.path or "/", http.method)
        return decide(policy, target, self._listed, self._clock_s()), host.text


def _refusal(verdict: Verdict, host: str) -> ext_authz_pb2.CheckResponse:
    body = {
        "error": "egress_denied",
        "reason": verdict.reason,
        "rule": verdict.rule,
        "host": host,
        "next_step": verdict.next_step,
    }
    headers = {"content-type": "application/json", "x-kars-reason": verdict.reason}
    return ext_authz_pb2.CheckResponse(
        status=ext_authz_pb2.Status(code=_DENIED),
        denied_response=ext_authz_pb2.DeniedHttpResponse(
            status=ext_authz_pb2.HttpStatus(code=403),
            body=json.dumps(body),
            headers=[
                ext_authz_pb2.HeaderValueOption(header=ext_authz_pb2.HeaderValue(key=key, value=value))
                for key, value in headers.items()
            ],
        ),
    )
