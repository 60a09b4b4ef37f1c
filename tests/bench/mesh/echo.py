"""The limit to compare with: a bare grpc.aio stream that sends every frame back. Same mTLS, nothing else."""

import asyncio
import sys
from pathlib import Path
from typing import Any

import grpc
import uvloop


async def echo(_requests: object, context: Any) -> None:
    while (frame := await context.read()) is not grpc.aio.EOF:
        await context.write(frame)


async def main(identity: Path, ready: Path) -> None:
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", 8 * 1024 * 1024),
            ("grpc.so_reuseport", 0),
            ("grpc.max_concurrent_streams", 100_000),
        ]
    )
    method: Any = grpc.stream_stream_rpc_method_handler(echo)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("kars.mesh.v1.Relay", {"Attach": method}),)
    )
    read = (identity / "tls.key").read_bytes(), (identity / "tls.crt").read_bytes()
    credentials = grpc.ssl_server_credentials(
        [read], (identity / "ca.crt").read_bytes(), require_client_auth=True
    )
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    ready.with_suffix(".new").write_text(str(port))
    ready.with_suffix(".new").rename(ready)
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.install()
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2])))
