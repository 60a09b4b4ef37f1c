"""Secrets are taken out of values before they reach a disk.

Three layers: mapping keys that name a secret, patterns of well-known credentials, and exact secrets
registered at run time (a provider key, a join token). Work is bounded: every pattern is linear in its input
(possessive or bounded repeats only) and longer strings are cut. A cheap test over a whole encoded record
decides whether the patterns need to run at all; a property test holds the two to the same answer.
"""

import base64
import re
from collections.abc import Mapping, Sequence
from typing import cast
from urllib.parse import quote

import orjson

from kars_common.audit.canonical import Json
from kars_common.errors import InvalidInputError

MIN_SECRET_CHARS = 6
MAX_SECRET_CHARS = 4096

_REDACTED = "[REDACTED]"
_SECRET_KEYS = frozenset(
    {
        *("authorization", "proxy_authorization", "cookie", "set_cookie", "credential", "credentials"),
        *("api_key", "apikey", "x_api_key", "private_key", "secret_key", "secret_access_key"),
        *("shared_access_key", "account_key", "connection_string", "client_secret", "secret"),
        *("password", "passwd", "passphrase"),
        *("access_token", "refresh_token", "id_token", "auth_token", "bearer_token"),
    }
)

_A = re.ASCII
_AI = re.ASCII | re.IGNORECASE
_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = (
    (
        re.compile(
            r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----"
            r"(?s:.*?)(?:-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----|\Z)",
            _A,
        ),
        "[REDACTED_PEM_PRIVATE_KEY]",
    ),
    (
        re.compile(
            r"(?<![\w-])eyJ[\w-]{8,4096}+\.[\w-]{4,16384}+(?:\.[\w-]{0,4096}+){0,3}",
            _A,
        ),
        "[REDACTED_JWT]",
    ),
    (
        re.compile(
            r"(?<![A-Za-z0-9])(?:"
            r"sk-[\w-]{16,512}+|(?:sk|rk|pk)_(?:live|test)_\w{16,512}+|whsec_[\w+/=]{16,512}+|"
            r"(?:gsk|hf|npm|glsa|dop_v1|lin_api)_\w{20,512}+|(?:xai|pplx|nvapi|pypi|glpat|dckr_pat|r8)-[\w-]{20,512}+|"
            r"AIza[\w-]{30,128}+|ya29\.[\w.-]{20,2048}+|GOCSPX-[\w-]{20,128}+|"
            r"SG\.[\w-]{16,64}+\.[\w-]{16,128}+|hvs\.[\w-]{20,512}+|dapi[0-9a-f]{32}+|"
            r"AGE-SECRET-KEY-1[0-9A-Z]{50,128}+|\d{8,10}:[\w-]{35}"
            r")",
            _A,
        ),
        "[REDACTED_API_KEY]",
    ),
    (
        re.compile(r"(?<![A-Z0-9])(?:AKIA|ASIA|AROA|AIDA|ABIA|ACCA)[A-Z0-9]{16}(?![A-Z0-9])", _A),
        "[REDACTED_AWS_KEY]",
    ),
    (
        re.compile(r"(?<![A-Za-z0-9])(?:gh[posru]_[A-Za-z0-9]{20,255}+|github_pat_\w{22,255}+)", _A),
        "[REDACTED_GITHUB_TOKEN]",
    ),
    (
        re.compile(
            r"(?<![A-Za-z0-9])(?:xox[a-z]-[A-Za-z0-9-]{10,255}+|xapp-[A-Za-z0-9-]{10,255}+|"
            r"hooks\.slack\.com/services/[A-Za-z0-9/]{16,128}+)",
            _A,
        ),
        "[REDACTED_SLACK_TOKEN]",
    ),
    (
        re.compile(r"(?<![A-Za-z0-9])bearer\s{1,8}+[\w.~+/=-]{8,16384}+", _AI),
        "[REDACTED_BEARER_TOKEN]",
    ),
    (
        re.compile(
            r"(?<![A-Za-z0-9])(authorization[\"'\\]{0,3}\s{0,4}[:=]\s{0,4}[\"'\\]{0,3})basic\s{1,8}+[\w+/=-]{4,4096}+",
            _AI,
        ),
        r"\1[REDACTED_BASIC_AUTH]",
    ),
    (
        re.compile(
            r"(?<![A-Za-z0-9+.-])([a-z][a-z0-9+.-]{0,20}://)[^\s/@:\"'<>]{0,128}+:[^\s\"'<>]{1,256}@", _AI
        ),
        r"\1[REDACTED_USERINFO]@",
    ),
    (
        re.compile(
            r"(?<![a-z0-9])(sig|sharedaccesskey|accountkey|sharedaccesssignature)(\s{0,4}=\s{0,4})[^\s;&\"']{8,2048}+",
            _AI,
        ),
        r"\1\2[REDACTED_CONNECTION_STRING]",
    ),
    (
        re.compile(
            r"(api[_-]?key|secret(?:[_-]?access)?(?:[_-]?key)?|token|passw(?:or)?d|passphrase|pwd|"
            r"access[_-]?key|private[_-]?key)"
            r"([\"'\\]{0,3}\s{0,4}[:=]\s{0,4}[\"'\\]{0,3})[^\s\"'\\,;&]{4,4096}+",
            _AI,
        ),
        r"\1\2[REDACTED_SECRET]",
    ),
)

# Every match of a pattern above holds a match of this in lower case, also in the JSON text of nested values.
_TRIGGER = (
    r"-----begin|eyj|s(?:k[-_]|g\.|ig\s*=|ecret|haredaccess)|[rp]k_|whsec_|gsk_|hf_|npm_|gl(?:sa_|pat-)|dop_v1_|"
    r"lin_api_|x(?:ai-|app-|ox[a-z]-)|p(?:plx-|ypi-|assw|assphrase|wd|rivate[_-]?key)|nvapi-|dckr_pat-|r8-|"
    r"a(?:iza|kia|sia|roa|ida|bia|cca|ge-secret|pi[_-]?key|uthorization|ccountkey|ccess[_-]?key)|ya29\.|gocspx-|"
    r"hvs\.|dapi|\d{8}:|g(?:h[posru]_|ithub_pat_)|hooks\.slack|bearer|token[\"'\\]{0,6}(?:\s|\\[a-z]){0,4}[:=]|"
    r"token\"|cookie|credential|connection_string"
)
_MAX_REMEMBERED = 4096
_MAX_REMEMBERED_CHARS = 256
_MAX_ID_CHARS = 32
"""Lower-case letters and digits up to this length match no pattern: every pattern wants another character."""


class Redactor:
    """Takes secrets out of JSON values; holds the secrets that were registered."""

    def __init__(self, *, max_string_chars: int = 8192) -> None:
        """Create one with no registered secret.

        Args:
            max_string_chars: Longer strings are cut to this length (and say so).
        """
        self._max = max_string_chars
        self._secrets: tuple[str, ...] = ()
        self._trigger = re.compile(_TRIGGER, _A)
        self._innocent: set[str] = set()
        self._innocent_keys: set[str] = set()
        self._ids_are_innocent = True

    def register(self, secret: str) -> None:
        """Redact this exact secret from now on, also base64- or URL-encoded. Idempotent.

        Raises:
            InvalidInputError: `secret_length_invalid`, when it is too short to be searched for or too long.
        """
        if not MIN_SECRET_CHARS <= len(secret) <= MAX_SECRET_CHARS:
            raise InvalidInputError(
                "secret_length_invalid",
                f"secret has {len(secret)} characters, {MIN_SECRET_CHARS} to {MAX_SECRET_CHARS}",
            )
        encoded = base64.b64encode(secret.encode()).decode().rstrip("=")
        forms = {*self._secrets, secret, encoded, encoded.translate(_URLSAFE), quote(secret, safe="")}
        self._secrets = tuple(sorted(forms, key=len, reverse=True))  # longest first: one may contain another
        escaped = (orjson.dumps(form).decode()[1:-1] for form in self._secrets)
        needles = {re.escape(form.lower()) for form in (*self._secrets, *escaped)}
        self._trigger = re.compile("|".join([_TRIGGER, *sorted(needles)]), _A)
        self._innocent.clear()
        self._innocent_keys.clear()
        self._ids_are_innocent = not any(form.isalnum() and form.islower() for form in self._secrets)

    def suspicious(self, fields: Mapping[str, object]) -> bool:
        """Tell whether `redact` may change these fields; never a false no. Remembers innocent strings."""
        if not fields.keys() <= self._innocent_keys and not self._learn_keys(fields):
            return True
        innocent = self._innocent
        fresh: list[str] = []
        for value in fields.values():
            kind = value.__class__
            if kind is str:
                text = cast("str", value)
                is_id = len(text) <= _MAX_ID_CHARS and text.isalnum() and text.islower()
                if text not in innocent and not (is_id and self._ids_are_innocent):
                    fresh.append(text)
            elif kind is dict or kind is list:
                try:
                    fresh.append(orjson.dumps(value).decode())
                except orjson.JSONEncodeError:
                    return True  # a lone surrogate or a huge integer: look at every string
        return bool(fresh) and self._learn(fresh)

    def _learn_keys(self, fields: Mapping[str, object]) -> bool:
        """Remember names that no rule speaks of; tell whether all were such."""
        if any(map(_telling, fields)) or self._trigger.search(" ".join(fields).lower()):
            return False
        if len(self._innocent_keys) > _MAX_REMEMBERED:
            self._innocent_keys.clear()
        self._innocent_keys.update(fields)
        return True

    def _learn(self, fresh: list[str]) -> bool:
        """Search strings not seen before; tell whether one is suspicious, else remember the short ones."""
        joined = "\n".join(fresh)
        if "@" in joined or len(joined) > self._max or self._trigger.search(joined.lower()) is not None:
            return True
        if len(self._innocent) > _MAX_REMEMBERED:
            self._innocent.clear()
        self._innocent.update(item for item in fresh if len(item) <= _MAX_REMEMBERED_CHARS)
        return False

    def redact(self, value: Json) -> Json:
        """Return the value without secrets; idempotent. Keys are searched as well."""
        if isinstance(value, str):
            return self.redact_text(value)
        if isinstance(value, Mapping):
            return {self.redact_text(key): self._redact_entry(key, item) for key, item in value.items()}
        if isinstance(value, Sequence):
            return [self.redact(item) for item in value]
        return value

    def redact_fields(self, fields: Mapping[str, object]) -> dict[str, object]:
        """Return record fields without secrets; see `redact`."""
        return {self.redact_text(key): self._redact_entry(key, item) for key, item in fields.items()}  # type: ignore[arg-type]  # normalised: JSON values

    def _redact_entry(self, key: str, item: Json) -> Json:
        if _telling(key) and item is not None and not isinstance(item, bool):
            return _REDACTED
        return self.redact(item)

    def _pass(self, text: str) -> str:
        for secret in self._secrets:
            if secret in text:
                text = text.replace(secret, "[REDACTED_REGISTERED_SECRET]")
        for pattern, replacement in _PATTERNS:
            text = pattern.sub(replacement, text)
        return text

    def redact_text(self, text: str) -> str:
        """Return one string without secrets, cut to the limit."""
        window = text[: self._max + MAX_SECRET_CHARS]
        for _ in range(_MAX_PASSES):  # what touched a secret may turn out to be one when that is gone
            before, window = window, self._pass(window)
            if window == before:
                break
        else:
            return _REDACTED
        if len(text) <= self._max + MAX_SECRET_CHARS and len(window) <= self._max:
            return window
        # What lies near the window's end may be the first half of a secret: it is not kept.
        kept = min(
            self._max, len(window) - (MAX_SECRET_CHARS if len(text) > self._max + MAX_SECRET_CHARS else 0)
        )
        return f"{window[: max(kept, 0)]}[CUT_FROM_{len(text)}_CHARS]"


_MAX_PASSES = 8


def _telling(key: str) -> bool:
    return key.lower().replace("-", "_") in _SECRET_KEYS


_URLSAFE = str.maketrans("+/", "-_")
_PATTERNS_ONLY = Redactor()


def redact(value: Json) -> Json:
    """Return the value without what looks like a credential (patterns and key names only)."""
    return _PATTERNS_ONLY.redact(value)
