"""What a sandbox tells the runtime in it: the runtime contract, read from the environment once.

A runtime that does not know the contract's version does not start: it would run with promises that it
cannot keep.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

SUPPORTED_VERSIONS = ("v1",)
CHAT_PORT = 18789
"""Where a runtime serves chat on the sandbox's own loop-back."""

AGENT_CODE = Path("/sandbox/agent")
"""Where the agent's code is, read-only."""


class ContractError(Exception):
    """The environment is not one that this runtime can run in; `reason` is stable."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class RuntimeContract:
    """What the sandbox says about itself."""

    version: str
    sandbox: str
    model: str
    agent_code: Path
    chat_port: int

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> "RuntimeContract":
        """Read the contract.

        Raises:
            ContractError: `contract_version_missing`, `contract_version_unsupported`, `chat_port_invalid`.
        """
        version = environ.get("KARS_RUNTIME_CONTRACT_VERSION", "")
        if not version:
            raise ContractError(
                "contract_version_missing",
                "KARS_RUNTIME_CONTRACT_VERSION is not set: this is no kars sandbox",
            )
        if version not in SUPPORTED_VERSIONS:
            supported = ", ".join(SUPPORTED_VERSIONS)
            raise ContractError(
                "contract_version_unsupported",
                f"runtime contract {version[:32]!r} is not known here, expected one of: {supported}",
            )
        return cls(
            version=version,
            sandbox=environ.get("SANDBOX_NAME", ""),
            model=environ.get("KARS_MODEL", ""),
            agent_code=Path(environ.get("KARS_AGENT_CODE") or AGENT_CODE),
            chat_port=_port(environ.get("KARS_CHAT_PORT") or str(CHAT_PORT)),
        )


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 <= int(text) <= 65535:
        raise ContractError("chat_port_invalid", f"KARS_CHAT_PORT must be a port, got {text[:16]!r}")
    return int(text)
