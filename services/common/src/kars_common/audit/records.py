"""From a type and fields to the one line that is written: checked, redacted, canonical.

Decides what a record may be; knows no file and no hash but the one it is given.
"""

import re
import time
from collections.abc import Mapping

from kars_common.audit import canonical
from kars_common.audit.redaction import Redactor
from kars_common.errors import InvalidInputError

VERSION = 1
RESERVED = frozenset({"v", "seq", "time", "origin", "type", "prev"})
_TYPE = re.compile(r"[a-z][a-z0-9_]{0,31}(?:\.[a-z][a-z0-9_]{0,31}){0,3}")


class RecordEncoder:
    """Makes the lines of one log."""

    def __init__(self, origin: str, redactor: Redactor, max_record_bytes: int) -> None:
        self._origin = origin
        self._redactor = redactor
        self._max_record_bytes = max_record_bytes
        self._types: set[str] = set()
        self._second = -1
        self._second_text = ""

    def encode(self, kind: str, fields: Mapping[str, object], seq: int, prev: str, now_s: float) -> bytes:
        """Return the canonical line of a record.

        Raises:
            InvalidInputError: `audit_type_invalid`, `audit_field_reserved`, `audit_field_invalid` or
                `audit_record_too_large`.
        """
        if kind not in self._types:
            self._types.add(_checked_type(kind))
        record = canonical.normalise(fields)
        if not RESERVED.isdisjoint(record):
            raise InvalidInputError("audit_field_reserved", f"reserved: {sorted(RESERVED & record.keys())}")
        if self._redactor.suspicious(record):
            record = self._redactor.redact_fields(record)
        record["v"] = VERSION
        record["seq"] = seq
        record["time"] = self._timestamp(now_s)
        record["origin"] = self._origin
        record["type"] = kind
        record["prev"] = prev
        try:
            line = canonical.encode(record)
        except (
            InvalidInputError
        ):  # most likely a lone surrogate in an agent's text, which must not stop a denial
            line = canonical.encode(canonical.scrub(record))
        if len(line) > self._max_record_bytes:
            raise InvalidInputError(
                "audit_record_too_large", f"record of {len(line)} bytes, at most {self._max_record_bytes}"
            )
        return line

    def _timestamp(self, now_s: float) -> str:
        second = int(now_s)
        if second != self._second:
            self._second = second
            self._second_text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._second_text}.{int((now_s - second) * 1000):03d}Z"


def _checked_type(kind: str) -> str:
    if not _TYPE.fullmatch(kind):
        raise InvalidInputError("audit_type_invalid", f"not a record type: {kind[:100]!r}")
    return kind
