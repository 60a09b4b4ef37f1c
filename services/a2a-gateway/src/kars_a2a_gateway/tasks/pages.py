"""ListTasks: newest first, in pages whose tokens only their owner can use.

A token names the last task of a page by its place in the order, so it stays valid when that task changes. It
is sealed (HMAC) together with the owner and the filters: one that was made for another caller, agent or
question is not a token.
"""

import base64
import binascii
import hashlib
import hmac
from dataclasses import dataclass

import orjson
from a2a.types import ListTasksRequest

from kars_a2a_gateway.errors import A2AError, Kind, invalid
from kars_a2a_gateway.storage.scripts import Script, Statement, Value
from kars_a2a_gateway.tasks.owners import Owner

DEFAULT_SIZE = 50
MAX_SIZE = 100
_MAX_TOKEN_CHARS = 1024
_TAG_BYTES = 16
_MAX_INTEGER = 2**63 - 1


@dataclass(frozen=True, kw_only=True)
class Page:
    """One page, as stored tasks with their contexts (snapshot, inner, outer)."""

    rows: list[tuple[bytes, str, str]]
    total: int
    next_token: str
    size: int


class Pager:
    """Makes pages and their tokens."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def size(self, request: ListTasksRequest) -> int:
        """Return the page size that is asked for.

        Raises:
            A2AError: INVALID_PARAMS.
        """
        size = request.page_size if request.HasField("page_size") else DEFAULT_SIZE
        if not 1 <= size <= MAX_SIZE:
            raise invalid(f"page size must be 1 to {MAX_SIZE}, got {size}", "pageSize")
        return size

    def page(self, owner: Owner, request: ListTasksRequest) -> Script[Page]:
        """Return one page of an owner's tasks.

        Args:
            owner: whose.
            request: filters, size and token.

        Raises:
            A2AError: INVALID_PARAMS for a size or a token that is none.
        """
        size = self.size(request)
        question = _question(owner, request)
        where, parameters = _where(owner, request)
        counted = yield Statement(f"SELECT COUNT(*) FROM tasks WHERE {where}", tuple(parameters))  # noqa: S608  # constants
        if request.page_token:
            updated_ns, task_id = self._open(request.page_token, question)
            where += " AND (updated_ns < ? OR (updated_ns = ? AND task_id < ?))"
            parameters += [updated_ns, updated_ns, task_id]
        rows = yield Statement(
            "SELECT snapshot, inner_context, outer_context, updated_ns, task_id FROM tasks"  # noqa: S608  # constants
            f" WHERE {where} ORDER BY updated_ns DESC, task_id DESC LIMIT ?",
            (*parameters, size + 1),
        )
        more = len(rows) > size
        token = self._seal(int(rows[size - 1][3]), str(rows[size - 1][4]), question) if more else ""
        return Page(
            rows=[(bytes(row[0]), str(row[1]), str(row[2])) for row in rows[:size]],
            total=int(counted[0][0]),
            next_token=token,
            size=size,
        )

    def _seal(self, updated_ns: int, task_id: str, question: bytes) -> str:
        body = orjson.dumps([updated_ns, task_id])
        return base64.urlsafe_b64encode(self._tag(body, question) + body).rstrip(b"=").decode()

    def _open(self, token: str, question: bytes) -> tuple[int, str]:
        try:
            padded = token[:_MAX_TOKEN_CHARS] + "=" * (-len(token) % 4)
            raw = base64.b64decode(padded, altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            raw = b""
        tag, body = raw[:_TAG_BYTES], raw[_TAG_BYTES:]
        if not hmac.compare_digest(tag, self._tag(body, question)):
            raise A2AError(Kind.INVALID_PARAMS, "the page token is not one of this list")
        updated_ns, task_id = orjson.loads(body)  # what we sealed, we wrote
        return int(updated_ns), str(task_id)

    def _tag(self, body: bytes, question: bytes) -> bytes:
        return hmac.new(self._key, question + body, hashlib.sha256).digest()[:_TAG_BYTES]


def _question(owner: Owner, request: ListTasksRequest) -> bytes:
    after_ns = _after_ns(request)
    return orjson.dumps([owner.agent, owner.principal, request.context_id, int(request.status), after_ns])


def _where(owner: Owner, request: ListTasksRequest) -> tuple[str, list[Value]]:
    where = "agent = ? AND principal = ?"
    values: list[Value] = [owner.agent, owner.principal]
    if request.context_id:
        where += " AND outer_context = ?"
        values.append(request.context_id)
    if request.status:
        where += " AND state = ?"
        values.append(int(request.status))
    if request.HasField("status_timestamp_after"):
        where += " AND updated_ns >= ?"
        values.append(_after_ns(request))
    return where, values


def _after_ns(request: ListTasksRequest) -> int:
    """Return the time filter; one that no 64 bits hold is after, or before, every task."""
    if not request.HasField("status_timestamp_after"):
        return 0
    return max(0, min(request.status_timestamp_after.ToNanoseconds(), _MAX_INTEGER))
