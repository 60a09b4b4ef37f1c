"""The controller's one SQLite file: opened once, written in transactions. Knows no table's meaning."""

from kars_controller.storage.database import Database

__all__ = ["Database"]
