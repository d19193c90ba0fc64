"""The floor every process stands on: errors, RPC, telemetry, settings, block hashes."""
