"""JSONPath columns, ages, providers, exit codes: what needs no server."""

import os
import stat
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kars_cli import home, jsonpath, output, reporting
from kars_cli.exits import Exit
from kars_cli.local import pods, process, providers
from kars_common.errors import InvalidInputError, PermissionDeniedError, UnavailableError

DOCUMENT = {"a": {"b-c": [{"type": "Ready", "status": "True"}, {"type": "X"}]}}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (".a.b-c[0].status", "True"),
        ('.a.b-c[?(@.type=="Ready")].status', "True"),
        (".a['b-c'][1].type", "X"),
        (".a.nothing.more", None),
        (".a.b-c[7]", None),
        (".a[0]", None),
    ],
)
def test_columns_find_their_values(path: str, value: str | None) -> None:
    assert jsonpath.find(DOCUMENT, path) == value


@pytest.mark.parametrize("path", ["a", "..a", ".a[*]", ".a[?(1==1)]", ".a[-1]"])
def test_paths_beyond_the_subset_are_refused(path: str) -> None:
    with pytest.raises(ValueError, match="unsupported"):
        jsonpath.find(DOCUMENT, path)


@given(st.text(max_size=60))
def test_any_path_is_followed_or_refused(path: str) -> None:
    with suppress(ValueError):
        jsonpath.find(DOCUMENT, path)


@pytest.mark.parametrize(
    ("then", "shown"),
    [
        ("2026-01-01T00:00:10Z", "50s"),
        ("2025-12-31T23:58:00Z", "3m"),
        ("2025-12-29T00:00:00Z", "3d"),
        ("x", ""),
        (7, ""),
    ],
)
def test_ages_are_short(then: object, shown: str) -> None:
    assert output.age(then, datetime(2026, 1, 1, 0, 1, tzinfo=UTC)) == shown


@given(st.text())
def test_text_from_elsewhere_cannot_drive_the_terminal(text: str) -> None:
    assert all(char.isprintable() or char == "\n" for char in output.clean(text))


def test_exit_codes_tell_refused_from_unreachable() -> None:
    assert reporting.exit_code(PermissionDeniedError("permission_denied", "no")) is Exit.REFUSED
    assert reporting.exit_code(UnavailableError("unavailable", "gone")) is Exit.UNREACHABLE
    assert reporting.exit_code(UnavailableError("port_refused", "closed")) is Exit.REFUSED


def test_keys_go_into_private_files_and_nowhere_else(tmp_path: Path) -> None:
    environ = {
        "KARS_PROVIDER_URL": "https://models.example/v1",
        "KARS_PROVIDER_KEY": "s3cret-key",
        "PATH": "/bin",
    }
    found = providers.from_options([], [], environ)
    providers.write(tmp_path, found)
    assert "s3cret" not in repr(found)
    assert "s3cret" not in (tmp_path / "providers.json").read_text()
    assert (tmp_path / "secrets" / "openai.key").read_text().strip() == "s3cret-key"
    for file in (tmp_path / "providers.json", tmp_path / "secrets" / "openai.key"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "secrets").stat().st_mode) == 0o700
    assert providers.without_keys(environ) == {
        "KARS_PROVIDER_URL": environ["KARS_PROVIDER_URL"],
        "PATH": "/bin",
    }


def test_openai_key_alone_means_openai() -> None:
    [provider] = providers.from_options([], [], {"OPENAI_API_KEY": "k"})
    assert (provider.name, provider.url, provider.key) == ("openai", "https://api.openai.com/v1", "k")


def test_key_of_the_environment_is_not_given_to_a_second_provider(tmp_path: Path) -> None:
    (tmp_path / "b.key").write_text("for-b\n")
    given = ["a=https://a/v1", "b=https://b/v1", "c=https://c/v1"]
    found = providers.from_options(given, [f"b={tmp_path / 'b.key'}"], {"KARS_PROVIDER_KEY": "for-a"})
    assert [provider.key for provider in found] == ["for-a", "for-b", ""]


@pytest.mark.parametrize(
    "given", ["nourl", "a=", "=https://x", "a=ftp://x", "../a=https://x", "a=https://u@h/v1"]
)
def test_malformed_providers_are_refused(given: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        providers.from_options([given], [], {})
    assert caught.value.reason == "provider_invalid"


def test_process_id_of_somebody_else_is_not_taken_for_the_controller(tmp_path: Path) -> None:
    (tmp_path / "dev.json").write_text(
        '{"controller": {"endpoint": "127.0.0.1:1", "bootstrapEndpoint": "127.0.0.1:2", '
        f'"dnsName": "controller.svc.kars.local", "pid": {os.getpid()}}}, "trustDomain": "kars.local"}}'
    )
    endpoints = home.endpoints(tmp_path)
    assert not endpoints.running
    assert process.stop(endpoints) is False


def test_no_pods_are_nothing_to_stop(tmp_path: Path) -> None:
    assert pods.directories(tmp_path) == []
    assert list(pods.stop_all(tmp_path)) == []
