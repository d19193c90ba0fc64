"""What a request leaves behind: telemetry, its line in the ledger, its price to its tenant."""
