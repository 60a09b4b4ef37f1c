"""The JWS library bounded to what cards use: two algorithms, headers as they are, and a card's size."""

from collections.abc import Mapping
from typing import Any

from joserfc.errors import UnsupportedAlgorithmError
from joserfc.jws import JWSRegistry

from kars_common.agent_cards.reading import MAX_CARD_BYTES

ALGORITHMS = ("EdDSA", "ES256")


class CardRegistry(JWSRegistry):
    """Gives out the two algorithms without the library's advice to name Ed25519 differently (RFC 9864)."""

    max_payload_length = MAX_CARD_BYTES

    def check_header(self, header: Mapping[str, Any]) -> None:
        """Accept members of any kind: official signers write `"jku": null`. `crit` was refused before."""

    def get_alg(self, name: str) -> Any:  # noqa: ANN401  # the library does not export its model
        """Return an algorithm.

        Raises:
            UnsupportedAlgorithmError: for every other one.
        """
        if name not in ALGORITHMS:
            raise UnsupportedAlgorithmError(f"cards are not signed with {name[:32]!r}")
        return self.algorithms[name]


# A2A allows members that no registry knows (`jku` is known); what is critical is refused before.
REGISTRY = CardRegistry(algorithms=ALGORITHMS, strict_check_header=False)
