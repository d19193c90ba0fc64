"""What a request may be and how it goes on: bounds, checks, names, transcripts."""
