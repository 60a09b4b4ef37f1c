"""What the audit witness keeps between runs."""

from kars_common.audit.witness import WitnessedHead

from kars_controller.storage import Database


class DatabaseWitnessStore:
    """A `WitnessStore` in the controller's database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, origin: str) -> WitnessedHead | None:
        """Return the last head of an origin."""
        row = self._database.row("SELECT * FROM witnessed_heads WHERE origin = ?", (origin,))
        if row is None:
            return None
        return WitnessedHead(
            log_public_key=row["log_public_key"],
            size=row["size"],
            root=row["root"],
            signed_note=row["signed_note"],
        )

    def put(self, origin: str, head: WitnessedHead) -> None:
        """Replace the head of an origin; durable when it returns."""
        with self._database.transaction():
            self._database.execute(
                "INSERT OR REPLACE INTO witnessed_heads (origin, log_public_key, size, root, signed_note)"
                " VALUES (?, ?, ?, ?, ?)",
                (origin, head.log_public_key, head.size, head.root, head.signed_note),
            )
