"""providers.json: where models are served, and how the router proves itself there.

The file and its key files are read again when they change. A key never leaves
this package except into the request header; everybody else sees its fingerprint.
"""

import hashlib
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

import pydantic

MAX_FILE_BYTES = 1024 * 1024
_HEADER_NAME = r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$"
# Printable ASCII: what is configured becomes a line of a request, and must not become two.
_HEADER_VALUE = r"^[ -~]*$"
# The same without `?`, `#` and `@`; a host that is not ASCII is written in its xn-- form.
_BASE_URL = r'^https?://[!"$->A-~]+$'


class ProviderConfigError(ValueError):
    """A providers file or a key file cannot be used; the message names the file, never its content."""

    reason = "provider_config_invalid"


class _Document(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", populate_by_name=True, frozen=True)


class AuthRecipe(_Document):
    """How the key is presented: `format` with `{key}` replaced goes into `header`."""

    header: Annotated[str, pydantic.Field(pattern=_HEADER_NAME)] = "Authorization"
    format: Annotated[str, pydantic.Field(pattern=_HEADER_VALUE)] = "Bearer {key}"
    key_file: Annotated[str, pydantic.Field(alias="keyFile", min_length=1)]


class ProviderEntry(_Document):
    """One OpenAI-compatible endpoint."""

    name: Annotated[str, pydantic.Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
    base_url: Annotated[str, pydantic.Field(alias="baseUrl", pattern=_BASE_URL)]
    auth: AuthRecipe | None = None
    headers: dict[
        Annotated[str, pydantic.Field(pattern=_HEADER_NAME)],
        Annotated[str, pydantic.Field(pattern=_HEADER_VALUE)],
    ] = {}
    # Name of the output bound that the endpoint understands; None: by its address.
    max_tokens_field: Annotated[
        Literal["max_tokens", "max_completion_tokens"] | None, pydantic.Field(alias="maxTokensField")
    ] = None
    # PEM roots to verify the endpoint with, besides the public ones; relative to the file.
    ca_file: Annotated[str | None, pydantic.Field(alias="caFile")] = None

    @pydantic.field_validator("base_url")
    @classmethod
    def _address(cls, url: str) -> str:
        parts = urlsplit(url)
        if not parts.hostname or parts.port == 0:  # reading the port refuses one that is no number
            raise ValueError("the address needs a host, and a port from 1 to 65535 if it names one")
        return url


class ProvidersFile(_Document):
    """The whole file; names are unique."""

    providers: list[ProviderEntry]

    @pydantic.model_validator(mode="after")
    def _unique(self) -> "ProvidersFile":
        names = [entry.name for entry in self.providers]
        if len(set(names)) != len(names):
            raise ValueError("provider names must be unique")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """One provider, ready to be called.

    Attributes:
        url: address of chat completions.
        headers: what is sent beside the credential.
        credential: header name and value, or None; secret.
        fingerprint: what records may say about the credential.
    """

    name: str
    url: str
    headers: tuple[tuple[str, str], ...]
    credential: tuple[str, str] | None
    secret: str | None
    fingerprint: str
    max_tokens_field: str
    ca_pem: bytes | None

    def __repr__(self) -> str:
        return f"Provider(name={self.name!r}, fingerprint={self.fingerprint!r})"


class ProviderRegistry:
    """The configured providers; follows changes of the files.

    Not knowing a provider is an answer (`get` returns None), not an error: a
    policy may name one that this router was not given. A changed file that
    cannot be read leaves the last good state and is reported.
    """

    def __init__(
        self,
        path: Path,
        *,
        on_secrets: Callable[[list[str]], None],
        on_event: Callable[[str, dict[str, str]], None],
    ) -> None:
        """Remember where the file is; `load` reads it.

        Args:
            path: the providers file.
            on_secrets: told every secret before it is used, so that redactors know it.
            on_event: told `credential.loaded` and `providers.refused` for the audit log.
        """
        self._path = path
        self._on_secrets = on_secrets
        self._on_event = on_event
        self._providers: dict[str, Provider] = {}
        self._stamp: tuple[object, ...] = ()

    def get(self, name: str) -> Provider | None:
        """Return a provider by name."""
        return self._providers.get(name)

    def names(self) -> list[str]:
        """Return the configured names."""
        return list(self._providers)

    def load(self) -> None:
        """Read the files.

        Raises:
            ProviderConfigError: unreadable or invalid file, or a key that others may read.
        """
        stamp, providers = self._read()
        self._on_secrets([provider.secret for provider in providers.values() if provider.secret])
        for name, provider in providers.items():
            before = self._providers.get(name)
            if before is None or before.fingerprint != provider.fingerprint:
                self._on_event("credential.loaded", {"provider": name, "key": provider.fingerprint})
        self._providers, self._stamp = providers, stamp

    def refresh(self) -> None:
        """Read the files again when one of them changed; keeps the last good state on failure."""
        if self._stamp and self._stamp == self._stat_all():
            return
        try:
            self.load()
        except ProviderConfigError as exc:
            stamp = self._stat_all()
            if stamp != self._stamp:
                self._stamp = stamp
                self._on_event("providers.refused", {"message": str(exc)})

    def _files(self) -> list[Path]:
        return [self._path, *self._dependencies]

    _dependencies: tuple[Path, ...] = ()

    def _stat_all(self) -> tuple[object, ...]:
        stamps: list[object] = []
        for path in self._files():
            try:
                status = path.stat()
                stamps.append((str(path), status.st_mtime_ns, status.st_size, status.st_ino))
            except OSError:
                stamps.append((str(path), None))
        return tuple(stamps)

    def _read(self) -> tuple[tuple[object, ...], dict[str, Provider]]:
        try:
            document = ProvidersFile.model_validate_json(_read_limited(self._path))
        except pydantic.ValidationError as exc:
            places = ", ".join(
                ".".join(map(str, error["loc"])) + ": " + error["msg"] for error in exc.errors()[:5]
            )
            raise ProviderConfigError(f"providers file {self._path.name}: {places}") from None
        base = self._path.parent
        files = [base / entry.auth.key_file for entry in document.providers if entry.auth is not None]
        files += [base / entry.ca_file for entry in document.providers if entry.ca_file is not None]
        self._dependencies = tuple(files)
        # Stamped before reading: a change in between is seen at the next refresh.
        stamp = self._stat_all()
        return stamp, {entry.name: _provider(entry, base) for entry in document.providers}


def _provider(entry: ProviderEntry, base: Path) -> Provider:
    secret: str | None = None
    credential: tuple[str, str] | None = None
    fingerprint = "none"
    if entry.auth is not None:
        secret = _read_key(base / entry.auth.key_file)
        if "{key}" not in entry.auth.format:
            raise ProviderConfigError(f"provider {entry.name}: auth.format must contain {{key}}")
        credential = (entry.auth.header, entry.auth.format.replace("{key}", secret))
        fingerprint = "sha256:" + hashlib.sha256(b"kars.credential\0" + secret.encode()).hexdigest()[:16]
    url = entry.base_url.rstrip("/")
    official = url.startswith("https://api.openai.com/")
    return Provider(
        name=entry.name,
        url=f"{url}/chat/completions",
        headers=tuple(entry.headers.items()),
        credential=credential,
        secret=secret,
        fingerprint=fingerprint,
        max_tokens_field=entry.max_tokens_field or ("max_completion_tokens" if official else "max_tokens"),
        ca_pem=_read_limited(base / entry.ca_file) if entry.ca_file is not None else None,
    )


def _read_limited(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as exc:
        raise ProviderConfigError(f"cannot read {path.name}: {exc.strerror}") from None
    if len(data) > MAX_FILE_BYTES:
        raise ProviderConfigError(f"{path.name} is larger than {MAX_FILE_BYTES} bytes")
    return data


def _read_key(path: Path) -> str:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as exc:
        raise ProviderConfigError(f"cannot read key file {path.name}: {exc.strerror}") from None
    with os.fdopen(descriptor, "rb") as file:
        # The group may read (Kubernetes mounts secrets that way); nobody else may.
        if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o037:
            raise ProviderConfigError(f"key file {path.name} is readable by others; mode 0600 is expected")
        raw = file.read(65_537)
    try:
        key = raw.decode("ascii").strip()
    except UnicodeDecodeError:
        raise ProviderConfigError(f"key file {path.name} is not ASCII") from None
    if not key or len(raw) > 65_536 or any(char.isspace() or not char.isprintable() for char in key):
        raise ProviderConfigError(f"key file {path.name} must hold one key without spaces")
    return key
