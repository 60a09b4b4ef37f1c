"""The synthetic name server answers questions, and nothing else, whatever arrives."""

import dns.message
import dns.rcode
from hypothesis import given
from hypothesis import strategies as st
from kars_egress.names.answering import ADDRESS, MAX_QUERY_BYTES, answer


@given(st.binary(max_size=600))
def test_any_bytes_are_answered_or_ignored(data: bytes) -> None:
    reply = answer(data)
    assert reply is None or len(reply) <= MAX_QUERY_BYTES


def test_every_name_has_the_synthetic_address() -> None:
    reply = answer(dns.message.make_query("any.example", "A").to_wire())
    assert reply is not None
    message = dns.message.from_wire(reply)
    assert [item.to_text() for item in message.answer[0]] == [ADDRESS]


def test_answers_are_not_answered() -> None:
    query = dns.message.make_query("any.example", "A")
    assert answer(dns.message.make_response(query).to_wire()) is None


def test_other_classes_and_sizes_are_refused() -> None:
    reply = answer(dns.message.make_query("version.bind", "TXT", "CH").to_wire())
    assert reply is not None
    assert dns.message.from_wire(reply).rcode() == dns.rcode.REFUSED
    assert answer(b"\x00" * (MAX_QUERY_BYTES + 1)) is None
