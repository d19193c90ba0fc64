"""Many calls of a router's on one."""
