"""Chat with the agent in this sandbox: the protocol, and the server that adapters plug their agent into."""

from kars_sdk.chat.protocol import (
    ChatEvent,
    Delta,
    Done,
    Failed,
    Message,
    ProtocolError,
    ToolCalled,
    ToolReturned,
)
from kars_sdk.chat.server import Agent, ChatServer, Limits
from kars_sdk.chat.sessions import Session

__all__ = [
    "Agent",
    "ChatEvent",
    "ChatServer",
    "Delta",
    "Done",
    "Failed",
    "Limits",
    "Message",
    "ProtocolError",
    "Session",
    "ToolCalled",
    "ToolReturned",
]
