"""What a sandbox needs of the framework: the wire format of the router's door, and no traces sent away."""

from agents import set_default_openai_api, set_tracing_disabled


def apply() -> None:
    """Set them for this process, before the user's module is imported; it may set others."""
    set_default_openai_api("chat_completions")
    # The framework's tracing goes to its maker's servers, which nothing in a sandbox reaches.
    set_tracing_disabled(disabled=True)
