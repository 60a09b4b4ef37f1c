"""What is exposed, and to whom: the gateway's policy, compiled."""
