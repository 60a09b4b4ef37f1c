"""Agent cards: taken in from agents, rewritten for the public address, signed anew."""
