"""The mesh bridge: frames between the agent and the relay, governed and never read."""
