"""What the handshake negotiates between our services: read from the bytes on the wire."""

import asyncio
import struct

from kars_relay_testkit import PeerStream
from kars_relay_testkit.house import House

X25519_MLKEM768 = 0x11EC
_KEY_SHARE = 0x0033


def key_share_groups(records: bytes) -> list[int]:
    """Return the groups of the key_share extension in the first handshake message of a TLS stream."""
    assert records[0] == 22, "no handshake record"
    length = struct.unpack(">H", records[3:5])[0]
    message = records[5 : 5 + length]
    client = message[0] == 1
    place = 4 + 2 + 32
    place += 1 + message[place]  # session id
    place += 2 + struct.unpack(">H", message[place : place + 2])[0] if client else 2  # cipher suites
    place += 1 + message[place] if client else 1  # compression
    end = place + 2 + struct.unpack(">H", message[place : place + 2])[0]
    place += 2
    while place < end:
        kind, size = struct.unpack(">HH", message[place : place + 4])
        if kind == _KEY_SHARE:
            shares = message[place + 4 : place + 4 + size]
            return [struct.unpack(">H", shares[:2])[0]] if not client else client_groups(shares[2:])
        place += 4 + size
    raise AssertionError("no key share")


def client_groups(shares: bytes) -> list[int]:
    groups = []
    while shares:
        group, size = struct.unpack(">HH", shares[:4])
        groups.append(group)
        shares = shares[4 + size :]
    return groups


async def test_services_agree_on_a_post_quantum_hybrid_key(house: House) -> None:
    seen: dict[str, bytearray] = {"client": bytearray(), "server": bytearray()}

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", house.port)

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, name: str) -> None:
            try:
                while data := await source.read(65536):
                    seen[name] += data
                    sink.write(data)
                    await sink.drain()
            except ConnectionError:
                pass
            finally:
                sink.close()

        await asyncio.gather(pump(reader, up_writer, "client"), pump(up_reader, writer, "server"))

    server = await asyncio.start_server(proxy, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with PeerStream(house.world.peer("hybrid"), port):
        assert key_share_groups(bytes(seen["server"])) == [X25519_MLKEM768]
        assert key_share_groups(bytes(seen["client"]))[0] == X25519_MLKEM768
    server.close()
