"""Kubernetes quantities as whole numbers."""

from decimal import Decimal

_SUFFIXES = {
    "": Decimal(1),
    "m": Decimal("0.001"),
    "k": Decimal(1000),
    "M": Decimal(1000**2),
    "G": Decimal(1000**3),
    "T": Decimal(1000**4),
    "Ki": Decimal(1024),
    "Mi": Decimal(1024**2),
    "Gi": Decimal(1024**3),
    "Ti": Decimal(1024**4),
}


def parse(value: str | float) -> Decimal:
    """Return a quantity in its base unit; the schema has checked its form."""
    text = str(value)
    number = text.rstrip("mkKMGTi")
    return Decimal(number) * _SUFFIXES[text[len(number) :]]


def to_bytes(value: str | float) -> int:
    """Return a quantity of memory or storage in bytes, at least 1."""
    return max(1, int(parse(value)))


def to_millis(value: str | float) -> int:
    """Return a quantity of CPU in thousandths of a core, at least 1."""
    return max(1, int(parse(value) * 1000))
