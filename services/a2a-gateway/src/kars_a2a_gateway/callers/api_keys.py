"""API keys: `kars_<id>_<secret>`, of which the policy knows the hash."""

import hashlib
import hmac
import re
from collections.abc import Mapping
from datetime import datetime

from kars_a2a_gateway.policy.exposures import ApiKey

_FORM = re.compile(r"kars_([a-z0-9]{8,32})_([A-Za-z0-9_-]{32,128})")
_NOTHING = bytes(32)


def verify(presented: str, keys: Mapping[str, ApiKey], now: datetime) -> ApiKey | None:
    """Return the key that was presented, or None; an unknown one costs the same comparison."""
    form = _FORM.fullmatch(presented)
    if form is None:
        return None
    key = keys.get(form.group(1))
    hashed = hashlib.sha256(presented.encode()).digest()
    same = hmac.compare_digest(hashed, key.sha256 if key is not None else _NOTHING)
    return key if key is not None and same and now < key.expires_at else None
