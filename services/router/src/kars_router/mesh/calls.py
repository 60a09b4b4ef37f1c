"""A mesh call: one recipient of a submission, or one request to relay or controller. On the one path."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from kars_router.pipeline.call import Call


@dataclass(slots=True, kw_only=True, eq=False)
class MeshCall(Call):
    """What the agent wants of the mesh.

    Attributes:
        operation: `send`, `receive`, `connect`, `identity` or `registry:<Method>`.
        peer: whom it is about; empty when it names nobody.
        envelopes: how many.
        size_bytes: of all payloads together; what is in them nobody here knows.
        perform: does it, once every gate let it pass.
        result: what `perform` returned.
    """

    kind: ClassVar[str] = "mesh"

    operation: str
    perform: Callable[[], Awaitable[Any]]
    peer: str = ""
    envelopes: int = 0
    size_bytes: int = 0
    result: Any = None

    @property
    def named_action(self) -> str:
        """The action as policy speaks about it."""
        return f"mesh:{self.operation}:{self.peer}" if self.peer else f"mesh:{self.operation}"

    def record(self) -> Mapping[str, Any]:
        """Return who and how much; never contents."""
        fields: dict[str, Any] = {"operation": self.operation, "bytes": self.size_bytes}
        if self.peer:
            fields["peer"] = self.peer
        if self.envelopes:
            fields["envelopes"] = self.envelopes
        return fields
