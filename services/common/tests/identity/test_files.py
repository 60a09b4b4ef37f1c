"""Identity from files: rotation by content, and every set of files that must not be used."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from kars_common.errors import InvalidInputError, UnavailableError
from kars_common.identity import FileSvidSource, Svid, load_svid
from kars_common.spiffe import SpiffeId
from kars_common.testing import MemoryAuthority


def write(
    directory: Path, svid: Svid, names: tuple[str, str, str] = ("tls.crt", "tls.key", "ca.crt")
) -> None:
    directory.mkdir(exist_ok=True)
    for name, data in zip(
        names, (svid.certificate_chain_pem, svid.private_key_pem, svid.trust_bundle_pem), strict=True
    ):
        (directory / name).write_bytes(data)
        (directory / name).chmod(0o600)


@pytest.mark.parametrize("names", [("tls.crt", "tls.key", "ca.crt"), ("svid.pem", "svid.key", "trust.pem")])
def test_both_layouts_are_read(tmp_path: Path, names: tuple[str, str, str]) -> None:
    svid = MemoryAuthority().service("relay")
    write(tmp_path, svid, names)
    assert FileSvidSource(tmp_path).current() == svid


async def test_rotation_by_symlink_swap_is_noticed(tmp_path: Path) -> None:
    authority = MemoryAuthority()
    first, second = authority.service("relay"), authority.service("relay")
    write(tmp_path / "1", first)
    write(tmp_path / "2", second)
    (tmp_path / "live").symlink_to("1")
    source = FileSvidSource(tmp_path / "live", poll_s=0.01)
    task = asyncio.create_task(source.run())
    (tmp_path / "next").symlink_to("2")
    (tmp_path / "next").rename(tmp_path / "live")
    assert await asyncio.wait_for(source.wait_changed(first), 5) == second
    task.cancel()


def test_half_written_rotation_keeps_the_identity_held(tmp_path: Path) -> None:
    authority = MemoryAuthority()
    first = authority.service("relay")
    write(tmp_path, first)
    source = FileSvidSource(tmp_path)
    (tmp_path / "tls.crt").write_bytes(authority.service("relay").certificate_chain_pem)
    source.refresh()
    assert source.current() == first


def test_expired_files_are_not_used(tmp_path: Path) -> None:
    svid = MemoryAuthority().issue(
        SpiffeId.service("kars.local", "relay"), issued_at=datetime.now(UTC) - timedelta(hours=2)
    )
    write(tmp_path, svid)
    with pytest.raises(UnavailableError):
        FileSvidSource(tmp_path).current()


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="no complete set"):
        FileSvidSource(tmp_path).current()


def test_key_open_to_everybody_is_refused(tmp_path: Path) -> None:
    write(tmp_path, MemoryAuthority().service("relay"))
    (tmp_path / "tls.key").chmod(0o644)
    with pytest.raises(InvalidInputError) as caught:
        load_svid(tmp_path)
    assert caught.value.reason == "svid_key_exposed"


def test_certificate_of_another_authority_than_the_roots_is_refused(tmp_path: Path) -> None:
    write(tmp_path, MemoryAuthority().service("relay"))
    (tmp_path / "ca.crt").write_bytes(MemoryAuthority().trust_bundle_pem)
    with pytest.raises(InvalidInputError) as caught:
        load_svid(tmp_path)
    assert caught.value.reason == "svid_invalid"


@pytest.mark.parametrize("name", ["tls.crt", "tls.key", "ca.crt"])
@pytest.mark.parametrize("content", [b"", b"nonsense", b"\xff" * 300_000])
def test_garbage_is_refused_with_a_reason(tmp_path: Path, name: str, content: bytes) -> None:
    write(tmp_path, MemoryAuthority().service("relay"))
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidInputError) as caught:
        load_svid(tmp_path)
    assert caught.value.reason == "svid_invalid"
