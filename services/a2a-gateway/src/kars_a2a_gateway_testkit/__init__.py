"""What tests, benchmarks and examples of the gateway start: a sample agent, its router's door, a controller.

Not part of the wheel. Everything is real: the agent is the official SDK's server, the door the router's own
module, the gateway its own process.
"""
