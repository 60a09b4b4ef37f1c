"""Push notifications, owned by the gateway: the sandbox neither sends them nor sees where they go."""
