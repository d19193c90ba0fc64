"""``penstock doctor``: facts asked of a running deployment, and pure checks over them."""
