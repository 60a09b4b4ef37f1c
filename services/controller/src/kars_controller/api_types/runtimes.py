"""The nine runtimes of a KarsSandbox: one object each, exactly one of them given."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from kars_controller.api_types.base import ApiModel, NonEmpty
from kars_controller.api_types.published import CelRule, Published

RuntimeKind = Literal[
    "OpenClaw",
    "OpenAIAgents",
    "MicrosoftAgentFramework",
    "SemanticKernel",
    "LangGraph",
    "Anthropic",
    "PydanticAi",
    "Hermes",
    "BYO",
]

VARIANT_OF_KIND: dict[str, str] = {
    "OpenClaw": "openclaw",
    "OpenAIAgents": "openaiAgents",
    "MicrosoftAgentFramework": "microsoftAgentFramework",
    "SemanticKernel": "semanticKernel",
    "LangGraph": "langGraph",
    "Anthropic": "anthropic",
    "PydanticAi": "pydanticAi",
    "Hermes": "hermes",
    "BYO": "byo",
}
"""Field under `spec.runtime` that belongs to each kind."""


def _absolute(path: str) -> str:
    if not path.startswith("/") or "\0" in path or ".." in path.split("/"):
        raise PydanticCustomError(
            "path", "allowed: an absolute path without .. (the kars command makes it one)"
        )
    return path


_ABSOLUTE_PATTERN = r"^(/(\.?|\.?[^/.\x00][^/\x00]*|\.\.[^/\x00]+))+$"
AbsolutePath = Annotated[
    str, AfterValidator(_absolute), Field(max_length=4096), Published(pattern=_ABSOLUTE_PATTERN)
]


class OciCode(ApiModel):
    """Agent code in an image."""

    image: NonEmpty


class GitCode(ApiModel):
    """Agent code in a git repository."""

    url: NonEmpty
    ref: str | None = None
    path: str | None = None


class LocalCode(ApiModel):
    """Agent code in a folder of this machine; bound read-only at /sandbox/agent."""

    path: AbsolutePath
    workspace: AbsolutePath | None = None
    """Copied into /sandbox when the sandbox is first created."""


class AgentCode(ApiModel):
    """Where the agent's own code comes from: exactly one of these."""

    oci: OciCode | None = None
    git: GitCode | None = None
    local: LocalCode | None = None

    cel: ClassVar[tuple[CelRule, ...]] = (
        CelRule(
            "[has(self.oci), has(self.git), has(self.local)].filter(given, given).size() == 1",
            "allowed: exactly one of oci, git, local",
        ),
    )


class Adapter(ApiModel):
    """What every framework adapter takes."""

    agent_code: AgentCode | None = None
    entrypoint: list[str] | None = None
    extra_env: dict[str, str] = Field(default_factory=dict)


class PythonAdapter(Adapter):
    """An adapter that runs on Python."""

    python_version: str | None = None


class MicrosoftAgentFramework(Adapter):
    """Microsoft Agent Framework; Python only."""

    language: Literal["python"] | None = None


class SemanticKernel(Adapter):
    """Accepted by the schema; no adapter exists."""

    language: Literal["python", "dotnet", "java"] | None = None


class LangGraph(Adapter):
    """LangGraph, in Python or TypeScript."""

    language: Literal["python", "typescript"] | None = None


class Hermes(Adapter):
    """Hermes."""

    version: str | None = None


class OpenClaw(ApiModel):
    """OpenClaw."""

    version: str | None = None
    image: str | None = None
    config: dict[str, Any] | None = None
    extra_env: dict[str, str] = Field(default_factory=dict)


class EnvVar(ApiModel):
    """A Kubernetes EnvVar; only literal values can be given to a local sandbox."""

    name: str
    value: str | None = None
    value_from: dict[str, Any] | None = None


class Byo(ApiModel):
    """Bring your own: any program that keeps the runtime contract."""

    image: NonEmpty
    contract_version: Annotated[Literal["v1"], Published(default="v1")]
    command: list[str] | None = None
    args: list[str] | None = None
    env: list[EnvVar] = Field(default_factory=list)
    agent_code: AgentCode | None = None
    """Additive: a local sandbox has no image to bring the code with it."""


class Runtime(ApiModel):
    """The kind and its one object."""

    kind: RuntimeKind
    openclaw: OpenClaw | None = None
    openai_agents: PythonAdapter | None = None
    microsoft_agent_framework: MicrosoftAgentFramework | None = None
    semantic_kernel: SemanticKernel | None = None
    lang_graph: LangGraph | None = None
    anthropic: PythonAdapter | None = None
    pydantic_ai: PythonAdapter | None = None
    hermes: Hermes | None = None
    byo: Byo | None = None

    cel: ClassVar[tuple[CelRule, ...]] = tuple(
        CelRule(
            f"has(self.{variant}) == (self.kind == '{owner}')",
            f"{variant} is required when kind is {owner}, and not allowed otherwise",
            f".{variant}",
        )
        for owner, variant in VARIANT_OF_KIND.items()
    )

    @property
    def adapter(self) -> Adapter | None:
        """The adapter's object; None for OpenClaw and BYO, which are none."""
        adapters = {
            "OpenAIAgents": self.openai_agents,
            "MicrosoftAgentFramework": self.microsoft_agent_framework,
            "SemanticKernel": self.semantic_kernel,
            "LangGraph": self.lang_graph,
            "Anthropic": self.anthropic,
            "PydanticAi": self.pydantic_ai,
            "Hermes": self.hermes,
        }
        return adapters.get(self.kind)

    @property
    def agent_code(self) -> AgentCode | None:
        """Where the agent's code comes from, whatever the kind."""
        owner = self.byo or self.adapter
        return owner.agent_code if owner is not None else None
