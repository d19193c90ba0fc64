"""The routers' picture of their workers, checked."""
