"""Fetches feeds over https or from a file: bounded while it reads, with a deadline, never over http."""

import asyncio
from datetime import timedelta
from pathlib import Path

from kars_common.errors import InvalidInputError, UnavailableError
from pyreqwest.client import ClientBuilder
from pyreqwest.exceptions import PyreqwestError

from kars_egress.blocklist.feeds import Fetched

_TIMEOUT_S = 120.0
_USER_AGENT = "kars-egress/1"


class HttpFetcher:
    """The real one."""

    async def fetch(self, url: str, etag: str, max_bytes: int) -> Fetched:
        """Fetch unless the ETag still holds; see `feeds.Fetcher`."""
        if url.startswith("/"):
            return await asyncio.to_thread(_read_file, Path(url), etag, max_bytes)
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                return await _get(url, etag, max_bytes)
        except TimeoutError as exc:
            raise UnavailableError("feed_unavailable", f"no answer within {_TIMEOUT_S:.0f} s") from exc
        except PyreqwestError as exc:
            raise UnavailableError("feed_unavailable", f"cannot be fetched: {type(exc).__name__}") from exc


async def _get(url: str, etag: str, max_bytes: int) -> Fetched:
    builder = (
        ClientBuilder().https_only(enable=True).connect_timeout(timedelta(seconds=10)).user_agent(_USER_AGENT)
    )
    async with builder.build() as client:
        request = client.get(url)
        if etag:
            request = request.header("if-none-match", etag)
        async with request.build_streamed() as response:
            if response.status == 304 and etag:
                return Fetched(None, etag)
            if response.status != 200:
                raise UnavailableError("feed_unavailable", f"answered {response.status}")
            body = bytearray()
            while chunk := await response.body_reader.read_chunk():
                body += bytes(chunk)
                if len(body) > max_bytes:
                    raise InvalidInputError("feed_too_large", f"more than {max_bytes} bytes")
            return Fetched(bytes(body), response.headers.get("etag") or "")


def _read_file(path: Path, etag: str, max_bytes: int) -> Fetched:
    try:
        with path.open("rb") as reader:
            data = reader.read(max_bytes + 1)
            status = path.stat()
    except OSError as exc:
        raise UnavailableError("feed_unavailable", f"cannot be read: {exc.strerror}") from exc
    if len(data) > max_bytes:
        raise InvalidInputError("feed_too_large", f"more than {max_bytes} bytes")
    fresh = f"{status.st_mtime_ns}-{status.st_size}"
    return Fetched(None if fresh == etag else data, fresh)
