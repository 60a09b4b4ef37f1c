"""The agent calls an API with a placeholder; the secret is put in outside, for one verified host."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from kars_egress.policy.entries import Entry
from kars_egress_testkit import world
from kars_egress_testkit.running import Scene, scene, wait

SECRET = "s3cr3t-of-the-platform"
ENTRY = Entry.build(
    "api.allowed.test", scheme="http", methods=("GET",), paths=("/v1",), upstream_tls=True, credential="api"
)


@pytest.fixture(scope="module")
def injected(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    world.needs_root()
    directory = tmp_path_factory.mktemp("credentials")
    (directory / "api.key").write_text(f"{SECRET}\n")
    (directory / "api.key").chmod(0o600)
    (directory / "open.key").write_text(SECRET)
    (directory / "open.key").chmod(0o644)
    named = {
        "api": {"header": "Authorization", "format": "Bearer {secret}", "file": "api.key"},
        "exposed": {"header": "authorization", "file": "open.key"},
    }
    (directory / "credentials.json").write_text(json.dumps({"credentials": named}))
    with scene(directory, credentials_file=directory / "credentials.json") as running:
        yield running


def fetch(
    scene: Scene, path: str = "/v1/x", method: str = "GET", host: str = "api.allowed.test"
) -> tuple[int, bytes]:
    extra = "authorization: Bearer placeholder\r\n"
    answer = scene.agent.get(f"http://{host}{path}", host, method=method, extra=extra)
    return answer.status, answer.body


def test_the_secret_replaces_the_placeholder_and_goes_over_tls(injected: Scene) -> None:
    injected.allow(ENTRY)
    status, _ = fetch(injected)
    assert status == 200
    request = injected.origins.requests[-1]
    assert request["port"] == 443
    assert request["headers"]["authorization"] == f"Bearer {SECRET}"


def test_methods_and_paths_are_kept_over_tls(injected: Scene) -> None:
    injected.allow(ENTRY)
    before = len(injected.origins.requests)
    assert fetch(injected, "/v2")[0] == 403
    assert fetch(injected, "/v1/../v2")[0] == 403
    assert fetch(injected, method="DELETE")[0] == 403
    assert len(injected.origins.requests) == before


def test_no_other_host_gets_it(injected: Scene) -> None:
    injected.allow(ENTRY, Entry.build("pending.test", scheme="http"))
    assert fetch(injected, host="pending.test")[0] == 200
    assert injected.origins.requests[-1]["headers"]["authorization"] == "Bearer placeholder"


def test_a_host_without_a_certificate_of_its_own_gets_nothing(injected: Scene) -> None:
    """`deep.er.wild.test` is not what the origin's certificate says."""
    injected.allow(
        Entry.build("deep.er.wild.test", scheme="http", upstream_tls=True, credential="api"),
        Entry.build("deep.er.wild.test", port=8443, scheme="http", upstream_tls=True),
    )
    before = len(injected.origins.requests)
    assert fetch(injected, host="deep.er.wild.test")[0] in {502, 503}
    assert len(injected.origins.requests) == before


@pytest.mark.parametrize("name", ["exposed", "unknown"])
def test_without_its_secret_a_request_is_not_sent(injected: Scene, name: str) -> None:
    injected.allow(Entry.build("api.allowed.test", scheme="http", upstream_tls=True, credential=name))
    before = len(injected.origins.requests)
    assert fetch(injected)[0] == 403
    assert len(injected.origins.requests) == before


def test_a_rotated_secret_is_used_without_a_restart(injected: Scene) -> None:
    injected.allow(ENTRY)
    (injected.directory / "api.key").write_text("fresh\n")

    def used() -> bool:
        fetch(injected)
        return bool(injected.origins.requests[-1]["headers"]["authorization"] == "Bearer fresh")

    wait(used, "the fresh secret is used")
    (injected.directory / "api.key").write_text(f"{SECRET}\n")


def test_the_secret_is_in_no_log(injected: Scene) -> None:
    injected.allow(ENTRY)
    fetch(injected)
    injected.recorded(("egress.allowed",), host="api.allowed.test")
    state = injected.directory / "state"
    texts = [file for file in state.rglob("*") if file.is_file() and file.suffix != ".sock"]
    assert texts
    for file in texts:
        assert SECRET.encode() not in file.read_bytes(), file


def test_a_secret_never_goes_out_in_plain_or_to_a_wildcard(tmp_path: Path) -> None:
    for wrong in (
        {"host": "a.test", "scheme": "http", "credential": "api"},
        {"host": "*.a.test", "scheme": "http", "upstream_tls": True, "credential": "api"},
        {"host": "a.test", "scheme": "https", "upstream_tls": True, "credential": "api"},
        {"host": "a.test", "scheme": "http", "upstream_tls": True, "credential": "../api"},
    ):
        with pytest.raises(Exception, match="entry_invalid"):
            Entry.build(**wrong)
