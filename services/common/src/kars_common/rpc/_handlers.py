"""Wrap gRPC method handlers of all four kinds with one function.

Interceptors say what happens around a call as an async context manager over the servicer context;
this module knows how each kind of handler is called. A response stream is always handed on as an
async generator, so that tracing (which iterates) can stand outside. Blocking handlers are refused:
they would run in a thread pool that nothing here bounds.
"""

# ruff: noqa: ANN401  # gRPC is generic over messages, which nothing here looks at

import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

import grpc

if TYPE_CHECKING:
    Handler = grpc.RpcMethodHandler[Any, Any]
else:
    Handler = grpc.RpcMethodHandler  # generic in its stubs only
Context = grpc.aio.ServicerContext[Any, Any]
Around = Callable[[Context], AbstractAsyncContextManager[None]]

_NO_RESPONSES: tuple[Any, ...] = ()


def wrap(handler: Handler, around: Around) -> Handler:
    """Return a handler that runs `handler` inside `around(context)`."""
    if handler.response_streaming:
        inner = handler.stream_stream if handler.request_streaming else handler.unary_stream
        make = (
            grpc.stream_stream_rpc_method_handler
            if handler.request_streaming
            else grpc.unary_stream_rpc_method_handler
        )
        return make(
            _streaming(inner, around),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )
    inner = handler.stream_unary if handler.request_streaming else handler.unary_unary
    make = (
        grpc.stream_unary_rpc_method_handler
        if handler.request_streaming
        else grpc.unary_unary_rpc_method_handler
    )
    return make(
        _single(inner, around),
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )


def _single(inner: Any, around: Around) -> Any:
    if not inspect.iscoroutinefunction(inner):
        raise TypeError(f"{inner!r} must be an async function")

    async def behaviour(request: Any, context: Context) -> Any:
        async with around(context):
            return await inner(request, context)

    return behaviour


def _streaming(inner: Any, around: Around) -> Any:
    if inspect.isasyncgenfunction(inner):

        async def behaviour(request: Any, context: Context) -> AsyncIterator[Any]:
            async with around(context):
                responses = inner(request, context)
                try:
                    async for response in responses:
                        yield response
                finally:
                    await responses.aclose()

        return behaviour
    if not inspect.iscoroutinefunction(inner):
        raise TypeError(f"{inner!r} must be an async function or an async generator")

    async def writing(request: Any, context: Context) -> AsyncIterator[Any]:
        async with around(context):
            await inner(request, context)  # writes to the context itself
        for response in _NO_RESPONSES:
            yield response

    return writing
