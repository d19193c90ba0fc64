"""A decoder's step as one call into a kernel that is compiled on the machine it runs on."""
