"""Engines that turn token ids into token ids. They know no RPC, no wire types and no text."""
