"""The way to the agents: kars.a2a.v1 over mTLS to the router in front of each."""
