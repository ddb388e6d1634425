"""Visual product search: a catalogue of products, and what in it looks like a picture."""
