"""What tests of the router share: a provider that speaks the real wire format, and the router as a process.

Importable in the workspace, not part of the wheel. Not the demo's model server.
"""

from kars_router_testkit.policies import bundle, sign_into
from kars_router_testkit.provider import FakeProvider, Reply, completion, sse_completion
from kars_router_testkit.router import HttpAnswer, RouterProcess

__all__ = [
    "FakeProvider",
    "HttpAnswer",
    "Reply",
    "RouterProcess",
    "bundle",
    "completion",
    "sign_into",
    "sse_completion",
]
