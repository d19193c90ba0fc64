"""OpenAI's shapes and what they mean here: bodies, answers, errors. No HTTP framework, no calls."""
