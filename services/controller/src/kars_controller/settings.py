"""What the controller can be told, from the environment (`KARS_CONTROLLER_*`)."""

from pathlib import Path
from typing import Literal

from kars_common.settings import ServiceSettings, service_config
from pydantic import Field


class ControllerSettings(ServiceSettings):
    """Settings of one controller process."""

    model_config = service_config("KARS_CONTROLLER_")

    state_dir: Path
    """The platform's state directory ($KARS_HOME); the controller keeps its own files in `controller/`."""

    address: str = "127.0.0.1:0"
    """`host:port` of the mTLS listener; port 0 takes any and says which in dev.json."""

    bootstrap_address: str = "127.0.0.1:0"
    """`host:port` of the listener where identities are obtained; it asks for no client certificate."""

    trust_domain: str = Field(default="kars.local", pattern=r"^[a-z0-9._-]{1,255}$")
    """SPIFFE trust domain; fixed once the root certificate exists."""

    platform: Literal["local"] = "local"
    """What runs the pods."""

    operator: str | None = Field(default=None, pattern=r"^[a-zA-Z0-9._-]{1,64}$")
    """User in the operator identity that is written for the kars command; None: the user of this process."""

    operator_lifetime_s: int = Field(default=12 * 3600, ge=600, le=7 * 24 * 3600)
    """Lifetime of the operator identity: a work day. Issued again at half life while the controller runs."""

    join_token_lifetime_s: int = Field(default=600, ge=10, le=3600)
    """How long a router has to prove itself with its one-time token."""

    providers_file: Path | None = None
    """The model endpoints, and the files of their keys; None: `<state_dir>/providers.json`."""

    checkout_dir: Path | None = None
    """Where runtimes are looked for (`.venvs/<runtime>`); None: next to this installation."""

    runtime_pydantic_ai: Path | None = None
    """Virtual environment of the PydanticAi runtime; None: `<checkout_dir>/.venvs/pydantic-ai`."""

    runtime_openai_agents: Path | None = None
    """Virtual environment of the OpenAIAgents runtime; None: `<checkout_dir>/.venvs/openai-agents`."""

    byo_strict_mode: bool = False
    """Refuse BYO sandboxes whose image reference breaks the contract, instead of a warning."""

    relay_endpoint: str | None = Field(default=None, pattern=r"^[^\s/]+:[0-9]{1,5}$")
    """`host:port` of a mesh relay that somebody else runs; None: one is started here, if it is installed."""

    mesh_federation_file: Path | None = None
    """Trust domains that mail is exchanged with, their roots and statement keys; None: none."""

    mesh_federation_address: str | None = Field(default=None, pattern=r"^[^\s/]+:[0-9]{1,5}$")
    """`host:port` where our relay takes calls of federated relays; None: it only calls them."""

    mesh_statement_key_days: int = Field(default=90, ge=1, le=3650)
    """Age at which the key that signs mesh identity statements is replaced, in days."""

    drain_s: float = Field(default=5.0, ge=0, le=60)
    """How long open calls may finish when the controller stops."""

    @property
    def own_dir(self) -> Path:
        """The controller's own files."""
        return self.state_dir / "controller"

    @property
    def code_dir(self) -> Path:
        """Agent code that was fetched: beside the state directory, which no sandbox may see a part of."""
        return self.state_dir.with_name(f"{self.state_dir.name}-code")

    @property
    def mesh_dir(self) -> Path:
        """What sandboxes may read of the mesh: beside the state directory, which none of them sees."""
        return self.state_dir.with_name(f"{self.state_dir.name}-mesh")

    @property
    def providers_path(self) -> Path:
        """The providers file."""
        return self.providers_file or self.state_dir / "providers.json"
