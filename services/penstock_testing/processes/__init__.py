"""Real processes, ours and others', to be scraped, stopped and killed."""
