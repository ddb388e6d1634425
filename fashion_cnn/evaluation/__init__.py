"""A trained network measured again, from its run directory alone."""
