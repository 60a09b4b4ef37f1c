"""Padmé: lengths are rounded up, so that they tell little. It costs at most 12 % more bytes.

From Nikitin et al., "Reducing Metadata Leakage from Encrypted Files and Communication", 2019.
"""

MIN_BYTES = 256
"""Everything shorter looks alike: an acknowledgement, a yes, a no."""


def padded_length(length: int) -> int:
    """Return the bucket of a length; O(log log n) bits of it show."""
    if length <= MIN_BYTES:
        return MIN_BYTES
    exponent = length.bit_length() - 1
    low_bits = exponent - exponent.bit_length()
    mask = (1 << low_bits) - 1
    return (length + mask) & ~mask
