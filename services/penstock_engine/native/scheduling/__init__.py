"""What runs in the next step: requests, their order, their limits. Pure."""
