"""Why a policy bundle is refused: the reasons of a NACK."""

from enum import StrEnum

from kars_common.errors import FailedPreconditionError


class Refusal(StrEnum):
    """Stable reason codes; the same words as in `kars.policy.v1.Nack.reason`."""

    SIGNATURE_INVALID = "signature_invalid"
    DIGEST_MISMATCH = "digest_mismatch"
    VERSION_ROLLBACK = "version_rollback"
    NOT_CANONICAL = "not_canonical"
    UNKNOWN_FIELD = "unknown_field"
    MALFORMED = "malformed"
    TOO_LARGE = "too_large"
    WRONG_SANDBOX = "wrong_sandbox"
    COMPILE_FAILED = "compile_failed"


class PolicyRefusedError(FailedPreconditionError):
    """A bundle must not come into force; what was in force stays."""

    def __init__(self, refusal: Refusal, message: str) -> None:
        super().__init__(refusal.value, message)
        self.refusal = refusal
