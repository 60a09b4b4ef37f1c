"""`make demo`: run the quickstart agent, attack every control, print what happened."""
