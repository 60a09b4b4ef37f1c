"""Settings of the gateway: `KARS_A2A_GATEWAY_*` from the environment, nothing else."""

from pathlib import Path
from typing import Self

import pydantic
from kars_common.settings import ServiceSettings, service_config
from pydantic import Field, SecretStr

MAX_BODY_BYTES = 4 * 1024 * 1024


class GatewaySettings(ServiceSettings):
    """What a gateway can be told. What is exposed, and to whom, is policy and not here."""

    model_config = service_config("KARS_A2A_GATEWAY_")

    trust_domain: str = "kars.local"
    """SPIFFE trust domain of the inside."""

    state_dir: Path
    """Directory of this gateway alone: tasks, audit log, policy, identity. Must survive restarts."""

    public_url: str = Field(pattern=r"^https?://[A-Za-z0-9.\-\[\]:]+$")
    """Scheme, host and port under which callers reach the HTTP bindings; written into cards."""

    public_grpc_target: str | None = None
    """`host:port` under which callers reach the gRPC binding; None leaves it out of cards."""

    http_address: str = "0.0.0.0:8443"  # a public door listens on all addresses
    """Where the HTTP bindings listen."""

    grpc_address: str | None = None
    """Where the gRPC binding listens, without client certificates; None serves none."""

    grpc_mtls_address: str | None = None
    """Where the gRPC binding listens and demands a client certificate: TLS in gRPC cannot merely offer it."""

    admin_address: str = "127.0.0.1:0"
    """Where the gRPC server for operators and the controller listens (mTLS inside)."""

    health_address: str = "127.0.0.1:0"
    """Where `/healthz`, `/readyz` and `/metrics` are served, in plain HTTP."""

    tls_cert_file: Path | None = None
    """Certificate chain of the public listeners, PEM; read again when it changes."""

    tls_key_file: Path | None = None
    """Its key."""

    client_ca_file: Path | None = None
    """Authorities of client certificates, PEM, in addition to those of the policy."""

    plaintext: bool = False
    """Serve without TLS: only behind something that ends TLS, or for a conformance run. Logged at start."""

    card_keys_dir: Path | None = None
    """Signing keys of cards, `<kid>.pem`; the last name in order signs, all are published. None: a key of its
    own is made in the state directory."""

    policy_keys_file: Path
    """Public keys that policy bundles must be signed with."""

    controller_endpoint: str | None = None
    """`host:port` of the controller's mTLS listener; None runs on the last known good policy alone."""

    bootstrap_endpoint: str | None = None
    """`host:port` where the first identity is obtained with the join token."""

    trust_bundle_file: Path | None = None
    """PEM roots that the bootstrap listener is verified with."""

    join_token_file: Path | None = None
    """One-time token for the first identity."""

    svid_dir: Path | None = None
    """Where somebody else keeps this gateway's identity fresh (cert-manager); instead of bootstrap."""

    database_url: SecretStr | None = None
    """`postgresql://...` when several replicas share tasks; None: SQLite in the state directory."""

    allow_loopback_targets: bool = False
    """Pushes and key sets may go to loopback, in plain HTTP too. For conformance runs; logged and audited."""

    max_body_bytes: int = Field(default=1024 * 1024, ge=1024, le=MAX_BODY_BYTES)
    """Largest request, when policy says nothing."""

    max_json_depth: int = Field(default=48, ge=8, le=90)
    """Deepest JSON; the official agent SDK fails above 90."""

    max_parts: int = Field(default=128, ge=1)
    """Parts of one message."""

    caller_requests_per_minute: int = Field(default=600, ge=1)
    """Requests a minute of one caller to one agent, when policy says nothing."""

    caller_burst: int = Field(default=120, ge=1)
    """How many of them at once."""

    agent_requests_per_minute: int = Field(default=6000, ge=1)
    """Requests a minute to one agent, when policy says nothing."""

    max_streams_per_caller: int = Field(default=64, ge=1)
    """Open streams of one caller, when policy says nothing."""

    max_streams: int = Field(default=4096, ge=1)
    """Open streams of this process."""

    max_open_tasks: int = Field(default=256, ge=1)
    """Tasks of one caller that have not ended, when policy says nothing."""

    max_push_configs: int = Field(default=8, ge=1)
    """Push configurations of one task, when policy says nothing."""

    max_stream_s: float = Field(default=3600.0, gt=0)
    """Longest life of one stream, when policy says nothing; the task goes on."""

    max_connections: int = Field(default=8192, ge=1)
    """HTTP connections at once."""

    request_timeout_s: float = Field(default=15.0, gt=0)
    """A whole request, head and body, must arrive within this."""

    agent_timeout_s: float = Field(default=30.0, gt=0)
    """Longest wait for an answer that is no task's work (GetTask, CancelTask, cards)."""

    blocking_timeout_s: float = Field(default=600.0, gt=0)
    """Longest wait of a blocking SendMessage; the task goes on, the caller gets it as it is."""

    push_timeout_s: float = Field(default=15.0, gt=0)
    """Longest wait for a push target to answer."""

    push_max_age_s: float = Field(default=24 * 3600.0, gt=0)
    """A push that could not be delivered for so long is given up, and the log says so."""

    push_first_retry_s: float = Field(default=1.0, gt=0)
    """First wait after a failed push; it doubles up to five minutes."""

    card_max_age_s: int = Field(default=60, ge=0)
    """`Cache-Control: max-age` of public cards, and how long an agent's own card is believed."""

    task_retention_s: float = Field(default=30 * 24 * 3600.0, gt=0)
    """Tasks that ended are forgotten after this."""

    drain_s: float = Field(default=10.0, ge=0)
    """At SIGTERM, requests in flight may go on for this long."""

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.plaintext == (self.tls_cert_file is not None):
            raise ValueError("exactly one of TLS_CERT_FILE and PLAINTEXT must be set")
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError("TLS_CERT_FILE and TLS_KEY_FILE belong together")
        if self.plaintext and self.grpc_mtls_address is not None:
            raise ValueError("GRPC_MTLS_ADDRESS needs TLS")
        if self.bootstrap_endpoint is not None and self.svid_dir is not None:
            raise ValueError("BOOTSTRAP_ENDPOINT and SVID_DIR exclude each other")
        return self
