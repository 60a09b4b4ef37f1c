"""Cards from strangers: bounded, unambiguous JSON, then the official message."""

import orjson
from a2a.types import AgentCard
from google.protobuf import json_format

from kars_common import strict_json
from kars_common.agent_cards.canonical import MAX_DEPTH
from kars_common.errors import InvalidInputError

MAX_CARD_BYTES = 256 * 1024


def parse_card(raw: bytes) -> AgentCard:
    """Read a card; members that A2A 1.0 does not know are dropped (no signature covers them).

    Raises:
        InvalidInputError: `card_too_large`, `card_malformed`, or a reason of `strict_json`.
    """
    if len(raw) > MAX_CARD_BYTES:
        raise InvalidInputError(
            "card_too_large", f"a card has at most {MAX_CARD_BYTES} bytes, got {len(raw)}"
        )
    document = strict_json.parse(raw, max_depth=MAX_DEPTH)
    if not isinstance(document, dict):
        raise InvalidInputError("card_malformed", "a card is a JSON object")
    card = AgentCard()
    try:
        json_format.ParseDict(document, card, ignore_unknown_fields=True)
    except (json_format.ParseError, ValueError, TypeError, AttributeError, RecursionError) as exc:
        raise InvalidInputError("card_malformed", "the document is not an A2A 1.0 agent card") from exc
    return card


def card_json(card: AgentCard) -> bytes:
    """Return a card as the JSON that is served."""
    return orjson.dumps(json_format.MessageToDict(card))
