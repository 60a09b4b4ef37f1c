"""The tamper-evident audit log: write it, prove it, witness it, verify it from files alone."""

from kars_common.audit.canonical import Json
from kars_common.audit.findings import Finding, Problem, VerifyReport
from kars_common.audit.log import AuditLog, Limits
from kars_common.audit.notes import (
    Checkpoint,
    open_checkpoint,
    open_cosignature,
    parse_verifier_key,
    verifier_key,
)
from kars_common.audit.redaction import Redactor, redact
from kars_common.audit.service import AuditLogServicer, AuditWitnessServicer, submit_over
from kars_common.audit.verify import verify_directory
from kars_common.audit.witness import (
    MemoryWitnessStore,
    Submission,
    Submit,
    Witness,
    WitnessedHead,
    WitnessedLog,
    WitnessStore,
)

__all__ = [
    "AuditLog",
    "AuditLogServicer",
    "AuditWitnessServicer",
    "Checkpoint",
    "Finding",
    "Json",
    "Limits",
    "MemoryWitnessStore",
    "Problem",
    "Redactor",
    "Submission",
    "Submit",
    "VerifyReport",
    "Witness",
    "WitnessStore",
    "WitnessedHead",
    "WitnessedLog",
    "open_checkpoint",
    "open_cosignature",
    "parse_verifier_key",
    "redact",
    "submit_over",
    "verifier_key",
    "verify_directory",
]
