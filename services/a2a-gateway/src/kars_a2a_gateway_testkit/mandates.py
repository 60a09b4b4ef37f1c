"""A bank that signs payment mandates."""

import json
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from kars.a2a.v1 import policy_pb2
from kars_a2a_gateway.payments.mandates import signing_payload
from kars_common.agent_cards import CardKey, CardSigningKey


class MandateKey:
    """A key that mandates are signed with."""

    def __init__(self, kid: str, key: Ed25519PrivateKey | None = None) -> None:
        private = key or Ed25519PrivateKey.generate()
        pem = private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        self._key = CardSigningKey.from_pem(pem, kid=kid)

    @property
    def public(self) -> CardKey:
        """What verifies them."""
        return self._key.public()

    def policy(self, *, required: bool) -> policy_pb2.PaymentRule:
        """Return the rule that accepts this key."""
        jwk = json.dumps(self._key.public_jwk())
        key = policy_pb2.CardKey(kid=self._key.kid, algorithm="EdDSA", jwk=jwk)
        return policy_pb2.PaymentRule(required=required, mandate_keys=[key])

    def signed(
        self,
        principal: str,
        now_s: float,
        mandate: dict[str, Any] | None = None,
        attempt: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Return `ap2` metadata: 1,000 a day, 5,000 a month, 600 at once; an attempt of 500."""
        signed: dict[str, Any] = {
            "mandateId": "m1",
            "principal": principal,
            "currency": "EUR",
            "dailyCap": 1000,
            "monthlyCap": 5000,
            "perTransferCap": 600,
            "counterpartyAllowlist": ["shop.example"],
            "exp": int(now_s) + 3600,
            **(mandate or {}),
        }
        head, _, tail = self._key.sign(signing_payload(signed)).split(".")
        tried = {
            "mandateId": "m1",
            "counterparty": "shop.example",
            "amount": 500,
            "currency": "EUR",
            "transferNonce": "n1",
            "timestamp": int(now_s),
            **(attempt or {}),
        }
        return {"mandate": {**signed, "signature": f"{head}..{tail}"}, "attempt": tried}
