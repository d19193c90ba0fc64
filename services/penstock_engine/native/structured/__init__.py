"""Constraints: a vocabulary, grammars over it, the masks they give."""
