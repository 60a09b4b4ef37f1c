"""The relay and registry of AgentMesh: ciphertext in, ciphertext out, and provable names."""
