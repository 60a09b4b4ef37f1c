"""One form of a host, or none."""

import ipaddress
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kars_common.errors import InvalidInputError
from kars_egress.policy.hosts import HostKind, canonical_host, parse_url, split_authority

LABELS = st.text(string.ascii_lowercase + string.digits + "-", min_size=1, max_size=20).filter(
    lambda label: not label.startswith("-") and not label.endswith("-")
)
NAMES = (
    st.lists(LABELS, min_size=1, max_size=5)
    .map(".".join)
    .filter(lambda name: not name.split(".")[-1][0].isdigit())
)


@given(st.text(max_size=400))
def test_any_text_has_one_form_or_is_refused(text: str) -> None:
    try:
        host = canonical_host(text)
    except InvalidInputError as error:
        assert error.reason == "host_invalid"  # noqa: PT017 - refusing is one of two good ends
        return
    assert canonical_host(host.text) == host, "the one form is its own form"
    assert host.text.isascii()
    assert host.text == host.text.lower()
    assert not set(host.text) & set("/\\@#?%[] \t\r\n\x00")


@given(st.text(max_size=400))
def test_any_url_is_read_or_refused(text: str) -> None:
    try:
        target = parse_url(text)
    except InvalidInputError as error:
        assert error.reason in {"url_invalid", "host_invalid"}  # noqa: PT017 - as above
        return
    assert target.scheme in {"http", "https"}
    assert 0 < target.port < 65536
    assert target.path.startswith("/")


@given(NAMES)
def test_case_and_one_dot_do_not_matter(name: str) -> None:
    expected = canonical_host(name)
    assert canonical_host(name.upper()) == expected
    assert canonical_host(f"{name}.") == expected
    with pytest.raises(InvalidInputError):
        canonical_host(f"{name}..")


@given(st.ip_addresses())
def test_an_address_is_an_address_in_its_usual_form(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    host = canonical_host(f"[{address}]" if address.version == 6 else str(address))
    assert (host.kind, host.text) == (HostKind.ADDRESS, str(address))


@pytest.mark.parametrize(
    "text", ["0x7f.1", "127.1", "2130706433", "0177.0.0.1", "1", "1.2.3.4.5", "0x", "a.0x1", "fe80::1%lo"]
)
def test_a_number_in_an_odd_notation_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError):
        canonical_host(text)


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("BÜCHER.example", "xn--bcher-kva.example"),
        ("faß.example", "xn--fa-hia.example"),
        ("\uff41\uff50\uff49.example", "api.example"),
    ],
)
def test_international_names_become_what_clients_look_up(text: str, form: str) -> None:
    assert canonical_host(text).text == form


@given(NAMES, st.integers(1, 65535))
def test_an_authority_has_the_port_that_it_names(name: str, port: int) -> None:
    assert split_authority(f"{name}:{port}", 443) == (canonical_host(name), port)
    assert split_authority(name, 443) == (canonical_host(name), 443)


def test_register_32_a_fragment_or_backslash_does_not_lend_a_suffix() -> None:
    assert parse_url("https://evil.example#.allowed.example/").host.text == "evil.example"
    with pytest.raises(InvalidInputError):
        parse_url("https://evil.example\\.allowed.example/")
    with pytest.raises(InvalidInputError):
        parse_url("https://allowed.example@evil.example/")
