"""Durations as profiles write them: digits with s, m or h; seconds when nothing follows."""

import re

PATTERN = r"^\s*0*[1-9][0-9]{0,8}[smh]?\s*$"
"""The form for those who know no Python: at least one second, digits and a unit."""

_FORM = re.compile(r"([0-9]{1,9})([smh]?)")
_UNIT_MS = {"": 1000, "s": 1000, "m": 60_000, "h": 3_600_000}


def parse_ms(text: str) -> int | None:
    """Return milliseconds, at least 1000; None when the text is no such duration."""
    match = _FORM.fullmatch(text.strip())
    if match is None:
        return None
    milliseconds = int(match[1]) * _UNIT_MS[match[2]]
    return milliseconds if milliseconds >= 1000 else None
