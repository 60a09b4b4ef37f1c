"""Padmé: lengths are rounded so that a message leaks O(log log n) bits of its size, for at most 12 % more bytes."""

MIN_BYTES = 256
"""Everything shorter looks alike: an acknowledgement, a yes, a no."""


def padded_length(length: int) -> int:
    """Return the bucket of a length (Nikitin et al., "Reducing Metadata Leakage from Encrypted Files", 2019)."""
    if length <= MIN_BYTES:
        return MIN_BYTES
    exponent = length.bit_length() - 1
    low_bits = exponent - exponent.bit_length()
    mask = (1 << low_bits) - 1
    return (length + mask) & ~mask
