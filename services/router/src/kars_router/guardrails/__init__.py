"""What an answer may contain: content-safety floor and secrets. Knows no provider and no transport."""
