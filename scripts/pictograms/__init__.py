"""Rendering of logos and drawings with random variation, for make_logos and make_drawings."""
