"""Settings of the router: `KARS_ROUTER_*` from the environment, nothing else."""

from pathlib import Path
from typing import Self

import pydantic
from kars_common.settings import ServiceSettings, service_config
from pydantic import Field


class RouterSettings(ServiceSettings):
    """What a router can be told. Every limit has a default that is safe to run with."""

    model_config = service_config("KARS_ROUTER_")

    namespace: str = Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")
    """Namespace of the sandbox behind the door."""

    sandbox: str = Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,56}[a-z0-9])?$")
    """Name of the sandbox behind the door."""

    trust_domain: str = "kars.local"
    """SPIFFE trust domain."""

    door_fd: int | None = Field(default=None, ge=3)
    """Inherited descriptor of the listening socket, made inside the sandbox by the supervisor."""

    door_address: str | None = None
    """`host:port` to listen on instead, where door and router share a network namespace."""

    state_dir: Path
    """Directory of this router alone: audit log, ledger, policy, identity. Must survive restarts."""

    providers_file: Path
    """Model providers; key files are named relative to it."""

    policy_keys_file: Path
    """Public keys that policy bundles must be signed with."""

    controller_endpoint: str | None = None
    """`host:port` of the controller's mTLS listener; None runs on the last known good policy alone."""

    bootstrap_endpoint: str | None = None
    """`host:port` where the first identity is obtained with the join token."""

    trust_bundle_file: Path | None = None
    """PEM roots that the bootstrap listener is verified with."""

    join_token_file: Path | None = None
    """One-time token for the first identity; deleted by whoever wrote it."""

    svid_dir: Path | None = None
    """Where somebody else keeps this router's identity fresh (cert-manager); instead of bootstrap."""

    witness_key_file: Path | None = None
    """Verifier key line of the controller's audit witness; None leaves checkpoints unwitnessed."""

    admin_address: str = "127.0.0.1:0"
    """Where the gRPC server for operators and the controller listens (mTLS)."""

    requests_per_second: int = Field(default=50, ge=1)
    """Calls a second of one door, when policy says nothing."""

    burst: int = Field(default=100, ge=1)
    """Calls at once before that rate applies, when policy says nothing."""

    max_concurrent: int = Field(default=256, ge=1)
    """Calls in flight, when policy says nothing."""

    queue_limit: int = Field(default=256, ge=0)
    """Calls that may wait for one in flight to end; beyond it they are refused."""

    queue_wait_s: float = Field(default=10.0, gt=0)
    """Longest wait in that queue."""

    max_request_bytes: int = Field(default=16 * 1024 * 1024, ge=1024)
    """Largest body of a model call; policy can only lower it."""

    max_response_bytes: int = Field(default=16 * 1024 * 1024, ge=1024)
    """Largest answer of a provider; policy can only lower it."""

    default_max_output_tokens: int = Field(default=4096, ge=1)
    """Output bound that is sent when a caller sets none, so that a reservation is an upper bound."""

    prompt_bytes_per_token: float = Field(default=3.0, ge=1.0, le=8.0)
    """Prompt bytes that are estimated as one token."""

    connect_timeout_s: float = Field(default=10.0, gt=0)
    """Longest wait for a connection to a provider."""

    read_timeout_s: float = Field(default=120.0, gt=0)
    """Longest silence of a provider."""

    total_timeout_s: float = Field(default=600.0, gt=0)
    """Longest life of one call to a provider, streams included."""

    approval_timeout_s: float = Field(default=300.0, gt=0)
    """A held call without a decision is denied after this."""

    max_holds: int = Field(default=64, ge=1)
    """Calls that may wait for approval at once."""

    request_timeout_s: float = Field(default=30.0, gt=0)
    """A whole request, head and body, must arrive within this."""

    drain_s: float = Field(default=25.0, ge=0)
    """At SIGTERM, calls in flight may go on for this long."""

    @pydantic.model_validator(mode="after")
    def _one_door(self) -> Self:
        if (self.door_fd is None) == (self.door_address is None):
            raise ValueError("exactly one of DOOR_FD and DOOR_ADDRESS must be set")
        if self.bootstrap_endpoint is not None and self.svid_dir is not None:
            raise ValueError("BOOTSTRAP_ENDPOINT and SVID_DIR exclude each other")
        return self
