"""From policy to what Envoy is sent: compiled resources, their versions, and one connected Envoy."""
