"""A door: one listener, one sandbox, and all state that is kept for it.

Which door accepted a connection *is* the caller's identity. State hangs on the
door object itself, so no key that a caller can influence selects it.
"""

from dataclasses import dataclass, field

from kars_router.budget.ledger import Ledger
from kars_router.governance.rates import RateState
from kars_router.limits.bucket import TokenBucket
from kars_router.limits.room import ByteRoom
from kars_router.limits.slots import Slots
from kars_router.pipeline.policy import CompiledPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class DoorDefaults:
    """Limits of a door when policy sets none."""

    requests_per_second: int = 50
    burst: int = 100
    max_concurrent: int = 256
    queue_limit: int = 256
    queue_wait_s: float = 10.0
    max_request_bytes: int = 16 * 1024 * 1024
    max_buffered_bytes: int = 64 * 1024 * 1024
    max_response_bytes: int = 16 * 1024 * 1024


@dataclass(slots=True, kw_only=True, eq=False)
class Door:
    """One sandbox's door."""

    namespace: str
    name: str
    defaults: DoorDefaults
    ledger: Ledger = field(default_factory=Ledger)
    rates: RateState = field(default_factory=RateState)
    policy: CompiledPolicy | None = None
    bucket: TokenBucket = field(init=False)
    slots: Slots = field(init=False)
    room: ByteRoom = field(init=False)
    sandbox: str = field(init=False)

    def __post_init__(self) -> None:
        self.sandbox = f"{self.namespace}/{self.name}"
        self.bucket = TokenBucket(self.defaults.requests_per_second, self.defaults.burst)
        self.room = ByteRoom(self.defaults.max_buffered_bytes)
        self.slots = Slots(
            self.defaults.max_concurrent, self.defaults.queue_limit, self.defaults.queue_wait_s
        )

    def enforce(self, policy: CompiledPolicy) -> None:
        """Put a policy in force for every call that comes from now on; counters and ledger stay."""
        limits = policy.limits
        self.bucket.resize(
            limits.requests_per_second or self.defaults.requests_per_second,
            limits.burst or self.defaults.burst,
        )
        self.slots.limit = limits.max_concurrent or self.defaults.max_concurrent
        self.policy = policy

    @property
    def max_response_bytes(self) -> int:
        """Largest answer: the smaller of policy's bound and the router's own."""
        asked = self.policy.limits.max_response_bytes if self.policy is not None else 0
        return min(asked, self.defaults.max_response_bytes) if asked else self.defaults.max_response_bytes
