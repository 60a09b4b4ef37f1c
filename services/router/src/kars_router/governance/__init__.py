"""May this action happen? Rules, patterns, canonical actions. Knows no HTTP and no model API."""
