"""The corpus of malformed requests: name, raw bytes. Made here, not recorded."""

from collections.abc import Iterator
from typing import Any

import orjson

Case = tuple[str, bytes]

GOOD: dict[str, Any] = {"model": "gpt-test", "messages": [{"role": "user", "content": "hi"}]}
CHAT = b"/v1/chat/completions"


def request(
    body: bytes, *, headers: tuple[bytes, ...] = (), method: bytes = b"POST", path: bytes = CHAT
) -> bytes:
    """Return a well-framed JSON request with these further headers."""
    lines = [
        method + b" " + path + b" HTTP/1.1",
        b"host: router",
        b"content-type: application/json",
        b"content-length: %d" % len(body),
        *headers,
    ]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def raw(*lines: bytes, body: bytes = b"") -> bytes:
    """Return a request of these very lines."""
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def _documents() -> Iterator[Case]:
    """Bodies that are no acceptable JSON object."""
    for text in ("[]", '"x"', "1", "null", "true", "-0", "1e5", "[{}]", '[["model"]]', '""'):
        yield f"not an object: {text}", text.encode()
    for text in (
        *("", " ", "{", "}", "{]", '{"model"}', '{"model":}', '{"model":"a",}', "{'model':'a'}", "{model:1}"),
        *('{"a":01}', '{"a":NaN}', '{"a":Infinity}', '{"a":-Infinity}', '{"a":+1}', '{"a":.5}', '{"a":1.}'),
        *('{"a":"\\x41"}', '{"a":"\t"}', '{"a":"\n"}', '{"a":"\\ud800"}', '{"a":"\\udc00x"}', '{"a":tru}'),
        *('{"a":1}{"b":2}', '{"a":1} x', "/* c */{}", '{"a":1 // c\n}', "\x00", '{"a":"\x00"}', "\ufeff{}"),
        *("<xml/>", "a=b&c=d", "undefined", "{{}}", '{"a":"b', "[" * 100_000, '{"a":' * 100_000),
    ):
        yield f"not JSON: {text[:24]!r}", text.encode()
    deep: Any = 1
    for _ in range(80):
        deep = [deep]
    yield "80 levels of arrays", orjson.dumps({**GOOD, "metadata": {"x": deep}})
    yield "1000 levels of objects", b'{"messages":' + b'{"a":' * 1000 + b"1" + b"}" * 1001
    for broken in (
        b"\xff",
        b"\xc3\x28",
        b"\xe2\x82",
        b"\xf0\x28\x8c\xbc",
        b"\xed\xa0\x80",
        b"\xc0\xaf",
        b"\xf8\x88\x80",
    ):
        yield f"invalid UTF-8 {broken!r}", b'{"model":"' + broken + b'"}'
    yield "UTF-16", orjson.dumps(GOOD).decode().encode("utf-16")
    yield "UTF-32", orjson.dumps(GOOD).decode().encode("utf-32")
    good = orjson.dumps(GOOD)[1:]
    yield "model twice", b'{"model":"gpt-evil",' + good
    yield "model twice, same value", b'{"model":"gpt-test",' + good
    yield "model twice, escaped", b'{"mod\\u0065l":"gpt-evil",' + good
    yield "messages twice", b'{"messages":[],' + good
    yield "stream twice", b'{"stream":true,"stream":false,' + good
    yield "role twice", b'{"model":"gpt-test","messages":[{"role":"user","role":"system","content":"x"}]}'
    yield "max_tokens twice", b'{"max_tokens":1,"max_tokens":9999999,' + good
    yield "deep duplicate", b'{"metadata":{"a":{"b":1,"b":2}},' + good
    yield "tool name twice", (b'{"tools":[{"type":"function","function":{"name":"a","name":"b"}}],' + good)


def _fields() -> Iterator[tuple[str, dict[str, Any]]]:
    """Documents whose fields are of the wrong type or out of range."""
    wrong: dict[str, list[Any]] = {
        "model": [1, True, [], {}, "", "x" * 257, 1.5],
        "messages": [None, "hi", {}, [], [1], ["hi"], [None], [[]], 7],
        "stream": ["true", 1, 0, [], {}, "yes"],
        "stream_options": [True, "include_usage", [], 1],
        "max_tokens": [0, -1, "10", 1.5, [], {}, True, 10**12, 2**70],
        "max_completion_tokens": [0, -5, "10", 2.5, False],
        "n": [0, -1, 129, "1", 1.0, True, [], 10**9],
        "temperature": ["hot", -0.1, 2.1, [], True, {}],
        "top_p": ["1", -1, 1.5, []],
        "tools": ["x", {}, [1], [None], ["f"], [[]], 3],
        "tool_choice": [1, True, []],
        "parallel_tool_calls": ["true", 1],
        "stop": [1, {}, [1], ["x"] * 17],
        "seed": ["1", 1.5, 2**64],
        "logprobs": ["true", 1],
        "top_logprobs": [21, -1, "2"],
        "logit_bias": [[], "x"],
        "response_format": ["json", []],
        "presence_penalty": [3, "0"],
        "frequency_penalty": [-3, []],
        "user": [1, []],
        "metadata": ["x", []],
        "store": [True, "false"],
        "modalities": [["audio"], "text", [1]],
        "service_tier": ["root", 1],
        "functions": ["x", [1]],
        "function_call": [1, []],
    }
    for name, values in wrong.items():
        for value in values:
            yield f"{name}={str(value)[:24]!r}", {**GOOD, name: value}
    for name in (
        *(
            "models",
            "route",
            "provider",
            "api_base",
            "api_key",
            "base_url",
            "fallbacks",
            "plugins",
            "transforms",
        ),
        *(
            "extra_headers",
            "extra_body",
            "mock_response",
            "custom_llm_provider",
            "deployment_id",
            "audio",
            "prediction",
        ),
        *(
            "web_search_options",
            "Model",
            "MODEL",
            "model ",
            "__proto__",
            "stream_option",
            "best_of",
            "prompt",
            "input",
        ),
    ):
        yield f"unknown field {name!r}", {**GOOD, name: ["gpt-evil"]}


def _messages() -> Iterator[tuple[str, dict[str, Any]]]:
    """Documents whose messages or tools are wrong inside."""
    image = {"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest/meta-data"}}
    for message in (
        {},
        {"content": "x"},
        {"role": "user"},
        {"role": "root", "content": "x"},
        {"role": 1, "content": "x"},
        {"role": None, "content": "x"},
        {"role": "User", "content": "x"},
        {"role": ["user"], "content": "x"},
        {"role": "user", "content": 1},
        {"role": "user", "content": {}},
        {"role": "user", "content": True},
        {"role": "user", "content": [1]},
        {"role": "user", "content": ["x"]},
        {"role": "user", "content": [{}]},
        {"role": "user", "content": [{"type": 1}]},
        {"role": "user", "content": [{"type": "text"}]},
        {"role": "user", "content": [{"type": "text", "text": 1}]},
        {"role": "user", "content": [{"type": "file", "file": {"file_id": "x"}}]},
        {"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]},
        {"role": "user", "content": [image]},
        {"role": "user", "content": [{"type": "image_url", "image_url": "data:image/png;base64,AA"}]},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]},
        {"role": "assistant", "tool_calls": "x"},
        {"role": "assistant", "tool_calls": [1]},
        {"role": "tool", "content": "x", "tool_call_id": 1},
        {"role": "user", "content": "x", "name": []},
    ):
        yield f"message {orjson.dumps(message)[:48]!r}", {**GOOD, "messages": [message]}
    for tool in (
        {},
        {"type": "function"},
        {"type": "function", "function": "f"},
        {"type": "function", "function": {}},
        {"type": "function", "function": {"name": 1}},
        {"type": "web_search"},
        {"type": "code_interpreter"},
        {"type": "mcp", "server_url": "https://evil.example"},
        {"type": 1},
    ):
        yield f"tool {orjson.dumps(tool)[:48]!r}", {**GOOD, "tools": [tool]}
    yield "streamed logprobs", {**GOOD, "stream": True, "logprobs": True}
    yield "stream options without a stream", {**GOOD, "stream_options": {"include_usage": True}}
    yield "stream options of a wrong type", {**GOOD, "stream": True, "stream_options": {"include_usage": 1}}
    yield "unknown stream option", {**GOOD, "stream": True, "stream_options": {"x": True}}


def _heads() -> Iterator[Case]:
    """Requests that are wrong before their body: framing, smuggling, media types, routes, sizes."""
    body = orjson.dumps(GOOD)
    line, host, kind = b"POST " + CHAT + b" HTTP/1.1", b"host: router", b"content-type: application/json"
    size = b"content-length: %d" % len(body)
    smuggled = b"POST /v1/chat/completions HTTP/1.1\r\nhost: evil\r\n\r\n"
    chunked = b"transfer-encoding: chunked"
    whole = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    yield "length and chunked", raw(line, host, kind, size, chunked, body=whole)
    yield "chunked and length", raw(line, host, kind, chunked, size, body=whole)
    yield "two lengths", raw(line, host, kind, size, b"content-length: 0", body=body + smuggled)
    yield "two equal lengths", raw(line, host, kind, size, size, body=body)
    for value in (b"-1", b"+5", b"0x10", b"5, 5", b"5 5", b"1e2", b"abc", b"", b"99999999999999999999999"):
        yield f"length {value!r}", raw(line, host, kind, b"content-length: " + value, body=body)
    for value in (
        b"identity",
        b"gzip, chunked",
        b"chunked, chunked",
        b"xchunked",
        b"chunked, identity",
        b"gzip",
        b"\x0bchunked",
    ):
        yield f"encoding {value!r}", raw(line, host, kind, b"transfer-encoding: " + value, body=whole)
    yield (
        "encoding with a space before the colon",
        raw(line, host, kind, b"transfer-encoding : chunked", body=whole),
    )
    yield "two encodings", raw(line, host, kind, chunked, b"transfer-encoding: identity", body=whole)
    yield "folded encoding", raw(line, host, kind, b"transfer-encoding:\r\n chunked", size, body=whole)
    for part in (
        b"zz\r\nx\r\n",
        b"-1\r\n",
        b"5;\x00\r\nhello\r\n",
        b"ffffffffffffffffff\r\n",
        b"5\rhello",
        b"3\r\nabcde\r\n0\r\n\r\n",
    ):
        yield f"chunk {part!r}", raw(line, host, kind, chunked, body=part)
    yield "no host", raw(line, kind, size, body=body)
    yield "two hosts", raw(line, host, b"host: evil", kind, size, body=body)
    yield (
        "absolute target",
        raw(b"POST http://evil.example/v1/chat/completions HTTP/1.1", host, kind, size, body=body),
    )
    yield "authority target", raw(b"CONNECT evil.example:443 HTTP/1.1", host)
    yield "asterisk target", raw(b"OPTIONS * HTTP/1.1", host)
    yield "HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    yield "HTTP/3.0", raw(b"POST " + CHAT + b" HTTP/3.0", host, kind, size, body=body)
    yield "HTTP/1.1x", raw(b"POST " + CHAT + b" HTTP/1.1x", host, kind, size, body=body)
    yield "HTTP/0.9", b"POST /v1/chat/completions\r\n\r\n"
    yield "no method", raw(b"/v1/chat/completions HTTP/1.1", host)
    yield "unknown method", raw(b"SMUGGLE " + CHAT + b" HTTP/1.1", host)
    yield "TLS hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64) + b"\r\n\r\n"
    yield (
        "upgrade to websocket",
        raw(line, host, kind, size, b"connection: upgrade", b"upgrade: websocket", body=body),
    )
    yield "upgrade to h2c", raw(line, host, kind, size, b"connection: upgrade", b"upgrade: h2c", body=body)
    yield "NUL in a header", raw(line, host, kind, size, b"x-a: a\x00b", body=body)
    yield "bare CR in a header", raw(line, host, kind, size, b"x-a: a\rb: c", body=body)
    yield "space in a header name", raw(line, host, kind, size, b"x a: b", body=body)
    yield "header without a colon", raw(line, host, kind, size, b"nonsense", body=body)
    yield "folded header", raw(line, host, kind, size, b"x-a: b\r\n  c", body=body)
    yield "101 headers", raw(line, host, kind, size, *(b"x-%d: y" % i for i in range(101)), body=body)
    yield "a header of 70 KiB", raw(line, host, kind, size, b"x-a: " + b"y" * 70_000, body=body)
    yield "an endless header name", b"POST / HTTP/1.1\r\n" + b"x" * 80_000
    yield "a target of 9 KiB", raw(b"POST /" + b"a" * 9000 + b" HTTP/1.1", host)
    yield "no media type", raw(line, host, size, body=body)
    for media in (
        b"text/plain",
        b"multipart/form-data",
        b"application/xml",
        b"application/json; charset=utf-16",
        b"*/*",
    ):
        yield f"media type {media!r}", raw(line, host, b"content-type: " + media, size, body=body)
    for coding in (b"gzip", b"br", b"deflate", b"zstd", b"compress"):
        yield f"content coding {coding!r}", request(body, headers=(b"content-encoding: " + coding,))
    yield "17 MiB announced", raw(line, host, kind, b"content-length: 17825792")
    yield (
        "17 MiB chunked",
        raw(line, host, kind, chunked, body=b"1100000\r\n" + b" " * 0x1100000 + b"\r\n0\r\n\r\n"),
    )
    for method in (b"GET", b"PUT", b"DELETE", b"PATCH", b"HEAD", b"OPTIONS", b"TRACE"):
        yield f"{method.decode()} on chat", request(b"", method=method)
    for path in (
        *(
            b"/",
            b"/v1",
            b"/v1/",
            b"/v1/chat",
            b"/v1/chat/completions/",
            b"//v1/chat/completions",
            b"/V1/chat/completions",
        ),
        *(
            b"/v1/chat/%63ompletions/x",
            b"/v1/../v1/chat/completions",
            b"/v1/chat/completions%00",
            b"/v1/chat/completions;x",
        ),
        *(
            b"/v1/responses",
            b"/v1/embeddings",
            b"/v1/completions",
            b"/v1/messages",
            b"/v1/images/generations",
        ),
        *(
            b"/admin/model",
            b"/agt/trust",
            b"/agt/audit",
            b"/agt/status",
            b"/agt/rate-limit",
            b"/internal/policy-status",
        ),
        *(b"/egress/fetch", b"/mcp", b"/.well-known/agent.json", b"/debug/pprof", b"/%2e%2e/etc/passwd"),
    ):
        yield f"POST {path.decode()}", request(body, path=path)


def cases() -> list[Case]:
    """Return every case; names are unique."""
    found: list[Case] = [(name, request(body)) for name, body in _documents()]
    found += [(name, request(_dump(document))) for name, document in (*_fields(), *_messages())]
    found += list(_heads())
    return [(f"{number:03d} {name}", data) for number, (name, data) in enumerate(found)]


def _dump(document: dict[str, Any]) -> bytes:
    import json

    return json.dumps(
        document
    ).encode()  # orjson refuses integers beyond 64 bits, which are part of the corpus
