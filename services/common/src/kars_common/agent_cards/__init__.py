"""A2A agent cards: their canonical forms, their signatures, and reading them from strangers.

Needs the extra `kars-common[agent-cards]`; nothing else of kars_common imports it.
"""

from kars_common.agent_cards.canonical import Form, canonical, forms_agree, unsafe_parts
from kars_common.agent_cards.keys import CardKey, CardSigningKey, load_signing_key
from kars_common.agent_cards.reading import MAX_CARD_BYTES, card_json, parse_card
from kars_common.agent_cards.signing import sign_card
from kars_common.agent_cards.verification import CardVerdict, protected_header, verify_card, verify_detached

__all__ = [
    "MAX_CARD_BYTES",
    "CardKey",
    "CardSigningKey",
    "CardVerdict",
    "Form",
    "canonical",
    "card_json",
    "forms_agree",
    "load_signing_key",
    "parse_card",
    "protected_header",
    "sign_card",
    "unsafe_parts",
    "verify_card",
    "verify_detached",
]
