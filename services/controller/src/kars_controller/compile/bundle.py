"""Puts together the bundle of one sandbox: everything but version and time of issue.

Two bundles with equal content digests enforce the same; only then may a version stay.
"""

import hashlib

from kars.policy.v1 import policy_pb2

from kars_controller.api_types.inference_policy import InferencePolicySpec
from kars_controller.api_types.tool_policy import ToolPolicySpec
from kars_controller.compile import digests, governance, inference
from kars_controller.resources import Document, ResourceKey, generation


def compile_bundle(
    sandbox: Document,
    inference_policy: tuple[Document, InferencePolicySpec],
    tool_policy: tuple[Document, ToolPolicySpec] | None,
    trust_threshold: int,
) -> policy_pb2.PolicyBundle:
    """Return the bundle of a sandbox; without a tool policy, governance is switched off.

    Raises:
        FailedPreconditionError: `policy_not_usable`, with the policy's name.
    """
    bundle = policy_pb2.PolicyBundle(sandbox=_ref(sandbox))
    document, spec = inference_policy
    bundle.inference.CopyFrom(inference.compile_inference(spec))
    bundle.sources.append(_source(document, inference_digest(spec)))
    if tool_policy is None:
        bundle.governance.CopyFrom(governance.ungoverned(trust_threshold))
        return bundle
    tool_document, tool_spec = tool_policy
    bundle.governance.CopyFrom(governance.compile_governance(tool_spec, trust_threshold))
    bundle.sources.append(_source(tool_document, tool_digest(tool_spec)))
    return bundle


def deny_all(sandbox: Document) -> policy_pb2.PolicyBundle:
    """Return a bundle without models or allowed actions: for when a policy in use was taken away."""
    bundle = policy_pb2.PolicyBundle(sandbox=_ref(sandbox))
    bundle.inference.SetInParent()
    bundle.governance.default_verdict = policy_pb2.VERDICT_DENY
    return bundle


def content_digest(bundle: policy_pb2.PolicyBundle) -> str:
    """Return a digest of what a bundle says, whatever its version and time of issue."""
    content = policy_pb2.PolicyBundle()
    content.CopyFrom(bundle)
    content.ClearField("version")
    content.ClearField("issued_at")
    return f"sha256:{hashlib.sha256(content.SerializeToString(deterministic=True)).hexdigest()}"


def inference_digest(spec: InferencePolicySpec) -> str:
    """Return the published digest of an InferencePolicy."""
    return digests.content_digest(digests.INFERENCE_POLICY_FILE, digests.inference_policy_body(spec))


def tool_digest(spec: ToolPolicySpec) -> str:
    """Return the published digest of a ToolPolicy's profile; empty when it has none."""
    profile = spec.agt_profile
    if profile is None or profile.inline is None:
        return ""
    return digests.content_digest(digests.AGT_PROFILE_FILE, profile.inline.encode())


def _ref(sandbox: Document) -> policy_pb2.SandboxRef:
    metadata = sandbox["metadata"]
    return policy_pb2.SandboxRef(namespace=metadata["namespace"], name=metadata["name"])


def _source(document: Document, digest: str) -> policy_pb2.Source:
    key = ResourceKey.of(document)
    return policy_pb2.Source(
        kind=key.kind,
        namespace=key.namespace,
        name=key.name,
        generation=generation(document),
        digest=digest,
    )
