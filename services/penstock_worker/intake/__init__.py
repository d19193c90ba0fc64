"""What a request has to show and say before it runs, and the plan that comes of it."""
