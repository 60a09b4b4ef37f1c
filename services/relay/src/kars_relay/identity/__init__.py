"""Names and keys: statements of the controller, and proofs that a key is held now, here, for this."""

from kars_relay.identity.proofs import check_connect_proof, check_continuity, connect_message
from kars_relay.identity.statements import Statement, StatementKeys, verify_statement

__all__ = [
    "Statement",
    "StatementKeys",
    "check_connect_proof",
    "check_continuity",
    "connect_message",
    "verify_statement",
]
