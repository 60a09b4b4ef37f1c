"""What a part of the benchmark hands to the runner: figures, promises, tables."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

Figures = dict[str, float | int | str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What is promised for one figure; at least `bound`, or at most."""

    figure: str
    text: str
    bound: float
    at_most: bool = False

    def met(self, value: float) -> bool:
        """Tell whether a value keeps the promise."""
        return value <= self.bound if self.at_most else value >= self.bound


@dataclass(frozen=True, kw_only=True)
class Part:
    """Everything that one part measured."""

    figures: Figures
    targets: Sequence[Target]
    tables: Sequence[Table]
