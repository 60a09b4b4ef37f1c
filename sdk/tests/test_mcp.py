"""The tool server as frameworks meet it: through the official client, in process and over stdio."""

import asyncio
import contextlib
import json
import os
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn
from kars_sdk.mcp import build_server
from kars_sdk.mesh.agent import MeshAgent
from kars_sdk.mesh.names import PeerName
from kars_sdk.mesh.store import Store
from kars_sdk.mesh.testing import OPEN, Authority, name
from kars_sdk.mesh.testing_mesh import MemoryMesh, RouterDoor
from kars_sdk.mesh.trust import TrustPolicy
from kars_sdk.mesh.upkeep import Profile
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client

ALICE, BOB = name("alice"), name("bob")
WAIT = 20
MESH_TOOLS = {
    "kars_discover": {"query"},
    "kars_mesh_send": {"to_agent", "content"},
    "kars_mesh_inbox": set(),
    "kars_mesh_await": {"senders"},
    "kars_mesh_transfer_file": {"to_agent", "file_path"},
}
"""The tools and the parameters that are required."""


async def anybody() -> TrustPolicy:
    return OPEN


@contextlib.asynccontextmanager
async def running(mesh: MemoryMesh, peer: PeerName, folder: Path) -> AsyncIterator[MeshAgent]:
    home = folder / peer.rpartition("/")[2]
    store = Store(home, bytes(32))
    endpoint = mesh.endpoint(peer)
    try:
        async with MeshAgent(
            name=peer, store=store, transport=endpoint, registry=endpoint, trust=lambda: mesh.authority.trust,
            policy=anybody, incoming=home / "incoming", min_backoff_s=0.02,
            profile=Profile(capabilities=("translate",)),
        ) as agent:  # fmt: skip
            await agent.client.attached(WAIT)
            yield agent
    finally:
        store.close()


async def call(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, result
    answer = json.loads(result.content[0].text)  # type: ignore[union-attr]
    assert isinstance(answer, dict)
    return answer


@contextlib.asynccontextmanager
async def served(app: RouterDoor) -> AsyncIterator[str]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(
            uvicorn.Config(app, log_level="error", lifespan="off", timeout_graceful_shutdown=1)
        )
        task = asyncio.create_task(server.serve([listener]), name="test-door")
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await task


async def test_the_tools_have_the_promised_names_and_shapes(tmp_path: Path) -> None:
    mesh = MemoryMesh(Authority())
    async with (
        running(mesh, ALICE, tmp_path) as alice,
        Client(await build_server(mesh=alice, door=None)) as client,
    ):
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    assert {each: set(tool.input_schema.get("required", [])) for each, tool in tools.items()} == MESH_TOOLS
    inbox = tools["kars_mesh_inbox"].input_schema["properties"]
    assert set(inbox) == {"mark_read", "unread_only", "limit", "block_until_message", "timeout_seconds"}
    assert "description" in tools["kars_mesh_transfer_file"].input_schema["properties"]
    assert all(tool.description for tool in tools.values())


async def test_two_agents_work_together_with_nothing_but_tools(tmp_path: Path) -> None:
    mesh = MemoryMesh(Authority())
    async with (
        running(mesh, ALICE, tmp_path) as alice,
        running(mesh, BOB, tmp_path) as bob,
        Client(await build_server(mesh=alice, door=None)) as ours,
        Client(await build_server(mesh=bob, door=None)) as theirs,
    ):
        found = await call(ours, "kars_discover", query="translate")
        assert [each["name"] for each in found["agents"]] == [BOB]
        assert found["agents"][0]["presence"] == "attached"

        asked = asyncio.create_task(
            call(ours, "kars_mesh_send", to_agent="bob", content="translate: hello", wait_for_reply=True)
        )
        got = await call(theirs, "kars_mesh_inbox", block_until_message=True, timeout_seconds=WAIT)
        assert [(each["from"], each["content"]) for each in got["messages"]] == [(ALICE, "translate: hello")]
        sent = await call(theirs, "kars_mesh_send", to_agent="alice", content="hallo")
        assert sent["status"] == "delivered"
        reply = await asked
        assert (reply["status"], reply["reply"]["content"]) == ("delivered_and_replied", "hallo")

        path = tmp_path / "result.txt"
        path.write_bytes(b"x" * 700_000)
        moved = await call(
            ours, "kars_mesh_transfer_file", to_agent="bob", file_path=str(path), description="d"
        )
        assert moved["status"] == "received"
        file = await call(theirs, "kars_mesh_await", senders=["alice"], timeout_seconds=WAIT)
        assert file["missing"] == []
        assert Path(file["messages"][0]["content"]["path"]).read_bytes() == path.read_bytes()
        again = await call(theirs, "kars_mesh_inbox", unread_only=False)
        assert [each["kind"] for each in again["messages"]] == ["text", "file"]
        assert again["unread"] == 0


async def test_errors_come_back_with_a_reason(tmp_path: Path) -> None:
    mesh = MemoryMesh(Authority())
    async with (
        running(mesh, ALICE, tmp_path) as alice,
        Client(await build_server(mesh=alice, door=None)) as client,
    ):
        unknown = await call(client, "kars_mesh_send", to_agent="nobody", content="hello")
        assert unknown["error"] == "peer_unknown"
        path = await call(client, "kars_mesh_transfer_file", to_agent=BOB, file_path="/etc")
        assert path["error"] == "file_not_readable"
        silent = await call(client, "kars_mesh_await", senders=[BOB], timeout_seconds=0)
        assert (silent["messages"], silent["missing"]) == ([], [BOB])
        empty = await client.call_tool("kars_mesh_send", {"to_agent": "bob"})
        assert empty.is_error


async def test_only_what_the_router_announces_is_offered() -> None:
    app = RouterDoor(MemoryMesh(Authority()), ALICE)
    async with served(app) as url, httpx2.AsyncClient(base_url=url, trust_env=False) as door:
        async with Client(await build_server(mesh=None, door=door)) as client:
            assert (await client.list_tools()).tools == []
        app.tools = [
            {"name": "http_fetch", "method": "POST", "path": "/egress/fetch"},
            {"name": "kars_spawn_list", "method": "GET", "path": "/sandbox/list"},
            {"name": "kars_spawn_destroy", "method": "DELETE", "path": "/sandbox/{name}"},
            {"name": "evil_tool", "method": "POST", "path": "/evil"},
            {"name": "kars_spawn", "method": "POST", "path": "//elsewhere.test/x"},
            {"name": "kars_spawn_status", "method": "TRACE", "path": "/x"},
        ]
        async with Client(await build_server(mesh=None, door=door)) as client:
            names = {tool.name for tool in (await client.list_tools()).tools}
            assert names == {"http_fetch", "kars_spawn_list", "kars_spawn_destroy"}
            assert await call(client, "http_fetch", url="https://example.test/", method="GET") == {"ok": True}
            assert await call(client, "kars_spawn_list") == {"ok": True}
            gone = await call(client, "kars_spawn_destroy", name="child")
            assert gone["error"]["code"] == "not_found"
            bad = await client.call_tool("kars_spawn_destroy", {"name": "../x"})
            assert bad.is_error
    assert app.calls[0][0] == "POST /egress/fetch?"
    assert json.loads(app.calls[0][1]) == {"url": "https://example.test/", "method": "GET"}


async def test_over_stdio_a_process_of_its_own_joins_the_mesh_through_the_door(tmp_path: Path) -> None:
    authority = Authority()
    mesh = MemoryMesh(authority)
    (tmp_path / "trust.json").write_bytes(authority.trust_json())
    async with running(mesh, BOB, tmp_path) as bob, served(RouterDoor(mesh, ALICE)) as url:
        parameters = StdioServerParameters(
            command=sys.executable,
            args=["-m", "kars_sdk.mcp"],
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(tmp_path / "home"),
                "KARS_ROUTER_URL": url,
                "KARS_MESH_PEER": ALICE,
                "KARS_MESH_TRUST_KEYS": str(tmp_path / "trust.json"),
            },
        )
        async with Client(stdio_client(parameters)) as client:
            assert {tool.name for tool in (await client.list_tools()).tools} == set(MESH_TOOLS)
            sent = await call(client, "kars_mesh_send", to_agent=BOB, content="from a process of its own")
            assert sent["status"] == "delivered"
        letters = await bob.letters(timeout_s=WAIT)
        assert [each.text for each in letters] == ["from a process of its own"]
    seen = b"".join(mesh.payloads)
    assert b"process of its own" not in seen
    assert (tmp_path / "home" / ".kars" / "mesh.key").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("missing", ["KARS_MESH_PEER", "KARS_MESH_TRUST_KEYS"])
async def test_a_sandbox_without_a_mesh_gets_no_mesh_tools(tmp_path: Path, missing: str) -> None:
    app = RouterDoor(MemoryMesh(Authority()), ALICE)
    app.tools = [{"name": "http_fetch", "method": "POST", "path": "/egress/fetch"}]
    async with served(app) as url:
        env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "KARS_ROUTER_URL": url}
        env |= {"KARS_MESH_PEER": ALICE, "KARS_MESH_TRUST_KEYS": "/nowhere"}
        del env[missing]
        parameters = StdioServerParameters(command=sys.executable, args=["-m", "kars_sdk.mcp"], env=env)
        async with Client(stdio_client(parameters)) as client:
            assert {tool.name for tool in (await client.list_tools()).tools} == {"http_fetch"}
