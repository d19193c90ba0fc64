"""From a file of lines to shards of work: checked, cut, recorded. Pure."""
