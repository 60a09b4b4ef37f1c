"""A2A on the wire, without a transport: reading requests, and what versions and extensions are agreed on."""
