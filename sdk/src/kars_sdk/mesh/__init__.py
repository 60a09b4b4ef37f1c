"""AgentMesh, the agent's side: sessions that only the two agents can read."""
