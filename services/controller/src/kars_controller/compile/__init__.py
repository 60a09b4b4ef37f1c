"""Policy resources compiled into what enforcement points understand. Pure: documents in, messages out."""
