"""Where batches live: objects and the indexes over them, tenants' files, the notice board."""
