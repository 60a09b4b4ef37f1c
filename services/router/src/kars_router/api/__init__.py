"""The doors: HTTP towards the agent, gRPC towards operators. Decode, call, encode; no decisions."""
