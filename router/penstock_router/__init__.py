"""The router: knows which worker holds which prefix, and says where each request goes and why."""
