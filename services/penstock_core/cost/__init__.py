"""What a worker's time costs, and who has spent how much."""
