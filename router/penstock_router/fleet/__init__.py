"""Who is there, and what each worker says of itself: discovery, state streams, load, health."""
