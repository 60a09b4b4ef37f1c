"""The only door out of a sandbox: policy enforcement point for every call an agent makes."""
