"""The agent's side of kars: what runs inside a sandbox.

Standard library only, because it shares an environment with whatever framework the agent is written in.
Holds no credential and knows no service: inside a sandbox there is the door, the files, and nothing else.
"""
