"""SPIFFE ids: exactly what the standard allows, and nothing that two readers could read differently."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kars_common.errors import InvalidInputError
from kars_common.spiffe import SpiffeId

TRUST_DOMAINS = st.from_regex(r"[a-z0-9._-]{1,40}", fullmatch=True)
SEGMENTS = st.from_regex(r"[a-zA-Z0-9._-]{1,20}", fullmatch=True).filter(lambda s: s not in {".", ".."})
LABELS = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)


@given(TRUST_DOMAINS, st.lists(SEGMENTS, max_size=6))
def test_id_comes_back_from_its_text(trust_domain: str, segments: list[str]) -> None:
    identity = SpiffeId(trust_domain, tuple(segments))
    assert SpiffeId.parse(str(identity)) == identity


@given(st.text(max_size=100) | st.text(max_size=60).map(lambda t: f"spiffe://kars.local/{t}"))
def test_text_is_refused_or_has_one_spelling(text: str) -> None:
    try:
        identity = SpiffeId.parse(text)
    except InvalidInputError:
        return
    assert str(identity) == text


@given(LABELS, LABELS)
def test_sandbox_is_found_again_in_its_id(namespace: str, name: str) -> None:
    identity = SpiffeId.sandbox("kars.local", namespace, name)
    assert SpiffeId.parse(str(identity)).sandbox_ref == (namespace, name)
    assert identity.dns_name == f"{name}.{namespace}.sandbox.kars.local"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "spiffe://",
        "spiffe:///svc/x",
        "SPIFFE://kars.local/svc/x",
        "https://kars.local/svc/x",
        "spiffe://Kars.local/svc/x",
        "spiffe://kars.local/",
        "spiffe://kars.local/svc/x/",
        "spiffe://kars.local//svc",
        "spiffe://kars.local/svc/../operator/root",
        "spiffe://kars.local/./svc",
        "spiffe://kars.local/svc/%2e%2e",
        "spiffe://kars.local/svc/x?y",
        "spiffe://kars.local/svc/x#y",
        "spiffe://user@kars.local/svc/x",
        "spiffe://kars.local:8443/svc/x",
        "spiffe://kars.local/svc/x\n",
        "spiffe://kars.local/svc/x\x00",
        "spiffe://kars.local/svc/ü",
        "spiffe://kars.local/" + "x" * 2048,
        "spiffe://" + "x" * 256 + "/svc",
    ],
)
def test_malformed_id_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError):
        SpiffeId.parse(text)


@pytest.mark.parametrize("name", ["", "Writer", "a/b", "-a", "a-", "a.b", "x" * 64, ".."])
def test_name_that_is_no_label_makes_no_identity(name: str) -> None:
    for make in (SpiffeId.service, lambda td, n: SpiffeId.sandbox(td, "team", n)):
        with pytest.raises(InvalidInputError):
            make("kars.local", name)


def test_sandbox_name_has_at_most_58_characters() -> None:
    SpiffeId.sandbox("kars.local", "team", "x" * 58)
    with pytest.raises(InvalidInputError):
        SpiffeId.sandbox("kars.local", "team", "x" * 59)


def test_only_servers_have_a_dns_name() -> None:
    assert SpiffeId.service("kars.local", "controller").dns_name == "controller.svc.kars.local"
    with pytest.raises(InvalidInputError):
        _ = SpiffeId.operator("kars.local", "ana").dns_name


def test_operator_name_cannot_add_segments() -> None:
    with pytest.raises(InvalidInputError):
        SpiffeId.operator("kars.local", "ana/../../svc/controller")
