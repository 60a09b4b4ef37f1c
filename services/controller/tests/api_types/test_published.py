"""Patterns of the published schema against the validators that they speak for.

An API server must not refuse what a validator takes; where a pattern can say all of it, neither may it take
what a validator refuses.
"""

import re
from collections.abc import Callable
from typing import Annotated, Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kars_controller.api_types.base import ApiModel, NonEmpty, ObjectName, OciRef
from kars_controller.api_types.pairing import PairingSpec
from kars_controller.api_types.runtimes import AbsolutePath
from kars_controller.api_types.sandbox import Governance, Quantity
from kars_controller.api_types.trust_graph import VertexId
from kars_controller.profiles import durations
from pydantic import TypeAdapter, ValidationError

_TEXT = st.one_of(
    st.text(alphabet="ab0-./:,@ \t\n", max_size=12),
    st.text(max_size=6),
    st.from_regex(r"\A(/\.{0,3}[a-z.]{0,3}){0,4}\Z"),
    st.from_regex(r"\A *([a-z-]{1,3}/)?[a-z0-9-]{1,3}(:[a-z]*)?( *, *[a-z]{0,2}){0,3}\Z"),
    st.from_regex(r"\A[0-9]{0,3}(\.[0-9]{0,2})?(m|k|Ki|s|h|x)?\Z"),
    st.from_regex(r"\Aspiffe://[a-z./]{0,20}\Z"),
)


def _field(model: type[ApiModel], name: str) -> Any:
    info = model.model_fields[name]
    return Annotated[(info.annotation, *info.metadata)] if info.metadata else info.annotation


EXACT: dict[str, Any] = {
    "ObjectName": ObjectName,
    "NonEmpty": NonEmpty,
    "AbsolutePath": AbsolutePath,
    "Quantity": Quantity,
    "OciRef.digest": _field(OciRef, "digest"),
    "PairingSpec.token_hash": _field(PairingSpec, "token_hash"),
}
WIDER: dict[str, Any] = {
    **EXACT,
    "VertexId": VertexId,
    "Governance.trusted_peers": _field(Governance, "trusted_peers"),
}


def _accepts(annotation: Any) -> Callable[[str], bool]:
    adapter: TypeAdapter[Any] = TypeAdapter(annotation)

    def accepts(text: str) -> bool:
        try:
            adapter.validate_python(text, strict=True)
        except ValidationError:
            return False
        return True

    return accepts


def _matches(annotation: Any) -> Callable[[str], bool]:
    schema = TypeAdapter(annotation).json_schema()
    schema = next((item for item in schema.get("anyOf", ()) if "pattern" in item), schema)
    # `$` is the end of the text for an API server; for Python it is also before a last line break.
    pattern = re.compile(re.sub(r"\$$", r"\\Z", schema["pattern"]))
    longest = schema.get("maxLength", 1_000_000)
    return lambda text: len(text) <= longest and pattern.search(text) is not None


@pytest.mark.parametrize("name", WIDER)
@settings(max_examples=80, deadline=None)
@given(text=_TEXT)
@example(text="/a/../b")
@example(text="/a/..b/.c")
@example(text="")
@example(text="planner, team/writer, spiffe://kars.local/ns/default/sandbox/reader, a2a-agent/x/y, old:Ab")
def test_an_api_server_takes_what_a_validator_takes(name: str, text: str) -> None:
    if _accepts(WIDER[name])(text):
        assert _matches(WIDER[name])(text)


@pytest.mark.parametrize("name", EXACT)
@settings(max_examples=80, deadline=None)
@given(text=_TEXT)
@example(text="/a/../b")
@example(text="a/b")
@example(text="a" * 254)
def test_an_api_server_refuses_what_a_validator_refuses(name: str, text: str) -> None:
    if not _accepts(EXACT[name])(text):
        assert not _matches(EXACT[name])(text)


@settings(max_examples=80, deadline=None)
@given(text=_TEXT)
@example(text=" 060s ")
@example(text="0s")
def test_a_window_is_the_same_for_both(text: str) -> None:
    # The pattern allows more leading zeros than nine digits; a validator counts all digits.
    if durations.parse_ms(text) is not None:
        assert re.search(durations.PATTERN, text)
    elif not re.match(r"\s*0", text):
        assert not re.search(re.sub(r"\$$", r"\\Z", durations.PATTERN), text)
