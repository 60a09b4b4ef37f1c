"""What the gateway itself sends to the outside: pushes, and fetches of key sets. Every dial is guarded."""
