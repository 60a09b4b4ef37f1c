"""The A2A gateway: the public door for agent-to-agent traffic."""
