"""The agent's side of kars: what runs inside a sandbox."""
