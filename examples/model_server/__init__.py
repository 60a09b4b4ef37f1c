"""A model server for examples and tests: speaks OpenAI's chat completions. Never part of the product."""
