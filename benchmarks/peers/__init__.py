"""The engines that ``engine_peers.py`` times, each in a process of its own."""
