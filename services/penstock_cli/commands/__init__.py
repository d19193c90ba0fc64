"""One file a command: options in, calls made, answers shown."""
