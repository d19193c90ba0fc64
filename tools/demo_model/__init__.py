"""Parts of the demo model's trainer: corpus, tokeniser, network, optimiser, export and card."""
