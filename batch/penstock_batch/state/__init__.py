"""What is known of a batch: its facts, the state they fold to, what is next. Pure."""
