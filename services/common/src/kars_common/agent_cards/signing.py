"""Sign a card: detached JWS over its canonical bytes.

A card whose two forms agree gets one signature. One whose forms differ gets two by the same key, so that a
verifier of either kind accepts it.
"""

from a2a.types import AgentCard, AgentCardSignature

from kars_common.agent_cards.canonical import Form, canonical
from kars_common.agent_cards.keys import CardSigningKey


def sign_card(card: AgentCard, key: CardSigningKey, *, jku: str = "", keep: bool = False) -> AgentCard:
    """Return a copy of the card with our signature; those it had are dropped unless `keep`.

    Args:
        card: what is signed, as it will be served.
        key: signs, and is named in the protected header.
        jku: URL of the key set that holds the public half; empty leaves it out.
        keep: other signatures stay; only for a card that was not changed since.
    """
    signed = AgentCard()
    signed.CopyFrom(card)
    if not keep:
        del signed.signatures[:]
    payloads = dict.fromkeys(canonical(card, form) for form in (Form.SPECIFICATION, Form.CLIENTS))
    for payload in payloads:
        signed.signatures.append(_signature(payload, key, jku))
    return signed


def _signature(payload: bytes, key: CardSigningKey, jku: str) -> AgentCardSignature:
    protected, _, signature = key.sign(payload, {"jku": jku} if jku else None).split(".")
    return AgentCardSignature(protected=protected, signature=signature)
