"""Those who ask: politely, strictly, without sense, and while workers die."""
