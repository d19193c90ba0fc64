"""Who may call: keys and where they lie, limits, leases, TLS."""
