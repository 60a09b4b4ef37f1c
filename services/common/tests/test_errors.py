"""Errors: stable reasons, cleaned foreign text, and a status for every class both ways."""

import grpc
import pytest
from google.rpc import (  # type: ignore[import-untyped]  # ships no stubs
    error_details_pb2,
    status_pb2,
)
from grpc.aio import AioRpcError, Metadata
from hypothesis import given
from hypothesis import strategies as st
from kars_common import errors
from kars_common.errors import FieldViolation, KarsError
from kars_common.rpc import from_rpc_error, to_grpc_status

CLASSES = [
    cls
    for cls in vars(errors).values()
    if isinstance(cls, type) and issubclass(cls, KarsError) and cls is not KarsError
]


def rpc_error(status: grpc.Status) -> AioRpcError:
    return AioRpcError(status.code, Metadata(), Metadata(*status.trailing_metadata), details=status.details)


@pytest.mark.parametrize("cls", CLASSES)
def test_every_error_comes_back_as_itself(cls: type[KarsError]) -> None:
    error = cls("some_reason", "a message", {"k": "v"}, [FieldViolation("spec.x", "must be y")])
    back = from_rpc_error(rpc_error(to_grpc_status(error)))
    assert type(back) is cls
    assert (back.reason, back.message, dict(back.metadata), back.violations) == (
        error.reason,
        error.message,
        {"k": "v"},
        error.violations,
    )


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_status_of_others_gets_a_class_and_its_own_name_as_reason(code: grpc.StatusCode) -> None:
    back = from_rpc_error(AioRpcError(code, Metadata(), Metadata(), details="x"))
    assert back.reason == code.name.lower()


@pytest.mark.parametrize("reason", ["", "Upper", "with-dash", "1st", "x" * 64, "a b"])
def test_reason_must_be_a_stable_code(reason: str) -> None:
    with pytest.raises(ValueError, match="lower_snake_case"):
        KarsError(reason, "x")


def test_reason_of_another_domain_is_not_taken_for_ours() -> None:
    status = status_pb2.Status(code=7, message="no")
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason="caller_not_authorized", domain="evil"))
    trailing = Metadata(("grpc-status-details-bin", status.SerializeToString()))
    error = AioRpcError(grpc.StatusCode.PERMISSION_DENIED, Metadata(), trailing, details="no")
    assert from_rpc_error(error).reason == "permission_denied"


@given(st.binary(max_size=64), st.text(max_size=64))
def test_whatever_a_peer_sends_becomes_an_error(details: bytes, text: str) -> None:
    trailing = Metadata(("grpc-status-details-bin", details))
    back = from_rpc_error(AioRpcError(grpc.StatusCode.INTERNAL, Metadata(), trailing, details=text))
    assert isinstance(back, KarsError)


@given(st.text(max_size=3000))
def test_cleaned_text_is_one_short_printable_line(foreign: str) -> None:
    clean = errors.clean_text(foreign, 100)
    assert len(clean) <= 100
    assert clean.isprintable()
