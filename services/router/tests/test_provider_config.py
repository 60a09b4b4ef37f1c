"""What stands in providers.json becomes lines of a request: nothing there may become two, or lead nowhere."""

import json
from pathlib import Path
from typing import Any

import pytest
from kars_router.providers.config import ProviderConfigError, ProviderRegistry


def load(folder: Path, **changes: Any) -> ProviderRegistry:
    key = folder / "key"
    key.touch(mode=0o600)
    key.write_text("sk-test-0123456789")
    entry = {"name": "main", "baseUrl": "https://models.example/v1", "auth": {"keyFile": "key"}, **changes}
    path = folder / "providers.json"
    path.write_text(json.dumps({"providers": [entry]}))
    registry = ProviderRegistry(path, on_secrets=lambda _: None, on_event=lambda *_: None)
    registry.load()
    return registry


@pytest.mark.parametrize(
    "url",
    [
        "https://models.example/v1",
        "http://127.0.0.1:8080",
        "https://[2001:db8::1]:8443/v1",
        "https://xn--e1aybc.example",
    ],
)
def test_an_address_with_host_and_port_is_taken(tmp_path: Path, url: str) -> None:
    provider = load(tmp_path, baseUrl=url).get("main")
    assert provider is not None
    assert provider.url == f"{url}/chat/completions"


@pytest.mark.parametrize(
    "url",
    [
        "https://models.example:99999/v1",
        "https://models.example:0/v1",
        "https://models.example:port/v1",
        "https:///v1",
        "https://user:pass@models.example/v1",
        "https://models.example/v1?key=x",
        "https://models.example/v1\r\nx-injected: 1",
        "https://models.example /v1",
        "https://модель.example/v1",
        "ftp://models.example/v1",
    ],
)
def test_an_address_that_leads_nowhere_or_further_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(ProviderConfigError) as raised:
        load(tmp_path, baseUrl=url)
    assert "pass@" not in str(raised.value)


@pytest.mark.parametrize("value", ["a\r\nx-injected: 1", "a\nb", "a\0b", "ключ"])
@pytest.mark.parametrize("place", ["headers", "format"])
def test_a_header_stays_one_line(tmp_path: Path, place: str, value: str) -> None:
    changes: dict[str, Any] = (
        {"headers": {"x-team": value}}
        if place == "headers"
        else {"auth": {"keyFile": "key", "format": value + "{key}"}}
    )
    with pytest.raises(ProviderConfigError):
        load(tmp_path, **changes)
