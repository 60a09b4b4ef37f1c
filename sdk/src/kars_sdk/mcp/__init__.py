"""The MCP tool server: the mesh, and what else the router's door offers, for any framework with MCP."""

from kars_sdk.mcp.server import build_server

__all__ = ["build_server"]
