"""gRPC between kars services: servers and channels over mTLS with SPIFFE ids.

The parts: `server`, `channel`, `authorization` (who may call what), `status` (errors on the wire).
"""

from kars_common.rpc.authorization import ANY_IDENTITY, ANYONE, AuthorizationTable
from kars_common.rpc.channel import PeerChannel, mapped_errors
from kars_common.rpc.interceptors import caller
from kars_common.rpc.server import RpcServer, ServerLimits
from kars_common.rpc.status import ERROR_DOMAIN, from_rpc_error, to_grpc_status

__all__ = [
    "ANYONE",
    "ANY_IDENTITY",
    "ERROR_DOMAIN",
    "AuthorizationTable",
    "PeerChannel",
    "RpcServer",
    "ServerLimits",
    "caller",
    "from_rpc_error",
    "mapped_errors",
    "to_grpc_status",
]
