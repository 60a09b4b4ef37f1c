"""Payment mandates (AP2): one place that reads them, one that judges, one ledger that remembers."""
