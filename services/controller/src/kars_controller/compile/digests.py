"""Digests of compiled artefacts, byte for byte as other tools compute them.

A content digest covers the artefact's logical file name and body, each with its length before it. JSON
bodies are compact UTF-8 with keys in the order written here; what is absent is an explicit null.
"""

import hashlib
import json
from typing import Any

from kars_controller.api_types.base import ApiModel
from kars_controller.api_types.inference_policy import InferencePolicySpec
from kars_controller.api_types.tool_policy import ToolPolicySpec

INFERENCE_POLICY_FILE = "inference-policy.json"
AGT_PROFILE_FILE = "agt-profile.yaml"


def content_digest(name: str, body: bytes) -> str:
    """Return `sha256:<hex>` over one named file."""
    encoded = name.encode()
    framed = len(encoded).to_bytes(8, "big") + encoded + len(body).to_bytes(8, "big") + body
    return f"sha256:{hashlib.sha256(framed).hexdigest()}"


def version_hash(body: bytes) -> str:
    """Return 32 hex characters that name a compiled artefact's content."""
    return hashlib.sha256(body).hexdigest()[:32]


def inference_policy_body(spec: InferencePolicySpec) -> bytes:
    """Return `inference-policy.json`."""
    applies_to, preference = spec.applies_to, spec.model_preference
    document = {
        "appliesTo": {
            "sandboxName": applies_to.sandbox_name,
            "sandboxMatchLabels": dict(sorted(applies_to.sandbox_match_labels.items())),
            "action": applies_to.action,
        },
        "tokenBudget": _members(spec.token_budget),
        "contentSafety": _members(spec.content_safety),
        "modelPreference": None
        if preference is None
        else {
            "primary": _members(preference.primary),
            "fallback": [_members(model) for model in preference.fallback],
        },
        "displayName": spec.display_name,
    }
    return _compact(document)


def tool_policy_body(spec: ToolPolicySpec) -> bytes:
    """Return `profile.json`: what a ToolPolicy says besides its profile."""
    document = {
        "appliesTo": {
            "tool": spec.applies_to.tool,
            "mcpServer": spec.applies_to.mcp_server,
            "sandboxMatchLabels": dict(sorted(spec.applies_to.sandbox_match_labels.items())),
        },
        "commerce": _members(spec.commerce),
        "rateLimit": _members(spec.rate_limit),
        "approval": _members(spec.approval),
        "displayName": spec.display_name,
    }
    return json.dumps(document, ensure_ascii=False, indent=2).encode()


def _members(model: ApiModel | None) -> dict[str, Any] | None:
    """Return all fields in declaration order, absent ones as null."""
    return None if model is None else model.model_dump(by_alias=True)


def _compact(document: dict[str, Any]) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
