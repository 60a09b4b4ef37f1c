"""Policy bundles: their bytes, their signatures, and keeping one in force.

Import the watch for a service, `sign` for the controller, `verify` for whoever checks.
"""

from kars_common.policy.bundles import MAX_PAYLOAD_BYTES, canonical_payload, digest, parse_payload
from kars_common.policy.errors import PolicyRefusedError, Refusal
from kars_common.policy.signing import dump_keys, key_id, load_keys, sign, verify
from kars_common.policy.store import PolicyStore
from kars_common.policy.watch import InForceState, PolicyWatch

__all__ = [
    "MAX_PAYLOAD_BYTES",
    "InForceState",
    "PolicyRefusedError",
    "PolicyStore",
    "PolicyWatch",
    "Refusal",
    "canonical_payload",
    "digest",
    "dump_keys",
    "key_id",
    "load_keys",
    "parse_payload",
    "sign",
    "verify",
]
