"""What Envoy decided: read from its log, audited, counted, shown live."""
