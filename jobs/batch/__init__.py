"""Jobs that are handed to a scheduler."""
