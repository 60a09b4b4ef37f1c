"""The container's own log: one JSON line an event on standard output, for `kars logs`."""

import json
import time
from collections.abc import AsyncIterator
from typing import TextIO

from kars_sdk.chat import ChatEvent, Delta, Done, Failed, ToolCalled, ToolReturned

_MAX_TEXT_CHARS = 4000


class Console:
    """Prints events; text of a reply is printed whole, when its turn ends."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def event(self, name: str, **fields: object) -> None:
        """Print one event."""
        line = {"time": round(time.time(), 3), "event": name, **fields}
        print(json.dumps(line, ensure_ascii=False), file=self._stream, flush=True)

    async def follow(self, events: AsyncIterator[ChatEvent], **fields: object) -> AsyncIterator[ChatEvent]:
        """Print the events of one turn while passing them on."""
        text = ""
        ending: ChatEvent = Done()
        async for event in events:
            match event:
                case Delta(text=piece):
                    text = (text + piece)[:_MAX_TEXT_CHARS]
                case ToolCalled(name=name):
                    self.event("tool_call", tool=name, **fields)
                case ToolReturned(name=name, ok=ok):
                    self.event("tool_result", tool=name, ok=ok, **fields)
                case Done() | Failed():
                    ending = event
            yield event
        if isinstance(ending, Failed):
            self.event("turn_failed", reason=ending.reason, message=ending.message, **fields)
        else:
            self.event("turn_done", text=text, **fields)
