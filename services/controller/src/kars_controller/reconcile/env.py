"""The agent's environment: what kars says first, then what the resource adds and may add."""

import re
from collections.abc import Iterable, Mapping

from kars_controller.api_types.runtimes import Runtime
from kars_controller.platforms.base import DOOR_PORT

CHAT_PORT = 18789
MESH_DIR = "/kars/mesh"
"""The folder, inside a sandbox, of what agents may read of the mesh."""
TRUST_KEYS_FILE = "trust-keys.json"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_RESERVED_PREFIXES = ("AGT_", "FOUNDRY_AGENT_", "AZURE_", "IMDS_", "KARS_")
_DOOR = f"http://127.0.0.1:{DOOR_PORT}"
_PLACEHOLDER_KEY = "router-managed"
"""No secret: client libraries insist on a key, the router replaces it."""


def agent_env(
    name: str, runtime: Runtime, model: str, bin_dir: str
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the environment, and the names that were left out of it."""
    env = {
        "PATH": f"{bin_dir}:/usr/local/bin:/usr/bin:/bin" if bin_dir else "/usr/local/bin:/usr/bin:/bin",
        "SANDBOX_NAME": name,
        "KARS_MODEL": model,
        "KARS_RUNTIME_CONTRACT_VERSION": "v1",
        "KARS_RUNTIME_KIND": runtime.kind,
        "KARS_ROUTER_URL": _DOOR,
        "OPENAI_BASE_URL": f"{_DOOR}/v1",
        "OPENAI_API_KEY": _PLACEHOLDER_KEY,
        "ANTHROPIC_BASE_URL": _DOOR,
        "ANTHROPIC_API_KEY": _PLACEHOLDER_KEY,
    }
    fixed = frozenset(env)
    env |= _runtime_facts(runtime)
    refused = []
    for key, value in _extra(runtime):
        if value is None or not _allowed(key, value) or key in fixed:
            refused.append(key)
        else:
            env[key] = value
    return env, tuple(refused)


def mesh_env(peer: str) -> dict[str, str]:
    """Return what an agent is told of the mesh."""
    return {"KARS_MESH_PEER": peer, "KARS_MESH_TRUST_KEYS": f"{MESH_DIR}/{TRUST_KEYS_FILE}"}


def _runtime_facts(runtime: Runtime) -> dict[str, str]:
    """Return what adapters are told of their own settings; extra env may overwrite it."""
    facts = {
        "RUNTIME_PYTHON_VERSION": getattr(runtime.adapter, "python_version", None),
        "RUNTIME_MAF_LANGUAGE": "python" if runtime.kind == "MicrosoftAgentFramework" else None,
        "RUNTIME_LANGGRAPH_LANGUAGE": getattr(runtime.lang_graph, "language", None) or "python"
        if runtime.kind == "LangGraph"
        else None,
        "HERMES_VERSION": getattr(runtime.hermes, "version", None),
    }
    return {key: value for key, value in facts.items() if value}


def _extra(runtime: Runtime) -> Iterable[tuple[str, str | None]]:
    if runtime.byo is not None:
        return [(item.name, item.value) for item in runtime.byo.env]
    owner: Mapping[str, str] = {}
    if runtime.openclaw is not None:
        owner = runtime.openclaw.extra_env
    elif runtime.adapter is not None:
        owner = runtime.adapter.extra_env
    return list(owner.items())


def _allowed(key: str, value: str) -> bool:
    return _NAME.fullmatch(key) is not None and not key.startswith(_RESERVED_PREFIXES) and "\0" not in value
