"""How answers look on a terminal: wire messages in, tables and lines out. No calls are made here."""
