"""The tamper-evident audit log: write it, prove it, witness it, verify it from files alone."""

from kars_common.audit.canonical import Json
from kars_common.audit.log import AuditLog, Limits
from kars_common.audit.notes import (
    Checkpoint,
    open_checkpoint,
    open_cosignature,
    parse_verifier_key,
    verifier_key,
)
from kars_common.audit.redaction import Redactor, redact

__all__ = [
    "AuditLog",
    "Checkpoint",
    "Json",
    "Limits",
    "Redactor",
    "open_checkpoint",
    "open_cosignature",
    "parse_verifier_key",
    "redact",
    "verifier_key",
]
