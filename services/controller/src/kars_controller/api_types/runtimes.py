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
    """The image."""


class GitCode(ApiModel):
    """Agent code in a git repository."""

    url: NonEmpty
    """Where to clone from, over https."""
    ref: str | None = None
    """Branch, tag or commit; absent: the default branch."""
    path: str | None = None
    """Folder of the code in the repository; absent: its root."""


class LocalCode(ApiModel):
    """Agent code in a folder of this machine; bound read-only at /sandbox/agent."""

    path: AbsolutePath
    """Absolute path of the folder."""
    workspace: AbsolutePath | None = None
    """Copied into /sandbox when the sandbox is first created."""


class AgentCode(ApiModel):
    """Where the agent's own code comes from: exactly one of these."""

    oci: OciCode | None = None
    """An image."""
    git: GitCode | None = None
    """A repository."""
    local: LocalCode | None = None
    """A folder; for the local platform."""

    cel: ClassVar[tuple[CelRule, ...]] = (
        CelRule(
            "[has(self.oci), has(self.git), has(self.local)].filter(given, given).size() == 1",
            "allowed: exactly one of oci, git, local",
        ),
    )


class Adapter(ApiModel):
    """What every framework adapter takes."""

    agent_code: AgentCode | None = None
    """Where the agent's code comes from."""
    entrypoint: list[str] | None = None
    """Command that starts the agent; absent: the runtime's own."""
    extra_env: dict[str, str] = Field(default_factory=dict)
    """Environment of the agent; reserved names are not passed on."""


class PythonAdapter(Adapter):
    """An adapter that runs on Python."""

    python_version: str | None = None
    """Python to run on; absent: the runtime's own."""


class MicrosoftAgentFramework(Adapter):
    """Microsoft Agent Framework; Python only."""

    language: Literal["python"] | None = None
    """Language of the agent; absent: python."""


class SemanticKernel(Adapter):
    """Accepted by the schema; no adapter exists."""

    language: Literal["python", "dotnet", "java"] | None = None
    """Language of the agent."""


class LangGraph(Adapter):
    """LangGraph, in Python or TypeScript."""

    language: Literal["python", "typescript"] | None = None
    """Language of the agent; absent: python."""


class Hermes(Adapter):
    """Hermes."""

    version: str | None = None
    """Version of Hermes; absent: the runtime's own."""


class OpenClaw(ApiModel):
    """OpenClaw."""

    version: str | None = None
    """Version of OpenClaw; absent: the runtime's own."""
    image: str | None = None
    """Image to run instead of the runtime's own."""
    config: dict[str, Any] | None = None
    """OpenClaw's own configuration."""
    extra_env: dict[str, str] = Field(default_factory=dict)
    """Environment of the agent; reserved names are not passed on."""


class EnvVar(ApiModel):
    """A Kubernetes EnvVar; only literal values can be given to a local sandbox."""

    name: str
    """Name of the variable."""
    value: str | None = None
    """Its value."""
    value_from: dict[str, Any] | None = None
    """Where the value comes from, as in a pod."""


class Byo(ApiModel):
    """Bring your own: any program that keeps the runtime contract."""

    image: NonEmpty
    """The image."""
    contract_version: Annotated[Literal["v1"], Published(default="v1")]
    """Version of the runtime contract that the program keeps."""
    command: list[str] | None = None
    """Command of the container."""
    args: list[str] | None = None
    """Arguments of the command."""
    env: list[EnvVar] = Field(default_factory=list)
    """Environment of the agent; reserved names are not passed on."""
    agent_code: AgentCode | None = None
    """Additive: a local sandbox has no image to bring the code with it."""


class Runtime(ApiModel):
    """The kind and its one object."""

    kind: RuntimeKind
    """Which runtime; exactly its object is given beside it."""
    openclaw: OpenClaw | None = None
    """For kind OpenClaw."""
    openai_agents: PythonAdapter | None = None
    """For kind OpenAIAgents."""
    microsoft_agent_framework: MicrosoftAgentFramework | None = None
    """For kind MicrosoftAgentFramework."""
    semantic_kernel: SemanticKernel | None = None
    """For kind SemanticKernel, for which there is no adapter."""
    lang_graph: LangGraph | None = None
    """For kind LangGraph."""
    anthropic: PythonAdapter | None = None
    """For kind Anthropic."""
    pydantic_ai: PythonAdapter | None = None
    """For kind PydanticAi."""
    hermes: Hermes | None = None
    """For kind Hermes."""
    byo: Byo | None = None
    """For kind BYO: any program that keeps the runtime contract."""

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
