"""What the audit log says about the outside."""
