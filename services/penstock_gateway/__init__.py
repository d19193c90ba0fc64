"""The OpenAI-compatible HTTP edge: translates, forwards, holds no state and knows no model."""
