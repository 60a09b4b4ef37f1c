"""The router's records: what is written about calls, and the ledger's replay of it."""
