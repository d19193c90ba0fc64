"""What was decided, why, and what came of it: the book, the log, the replay."""
