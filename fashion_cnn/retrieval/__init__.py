"""Visual product search: a catalogue of products, and what in it looks like a picture."""

import os

# Without this setting, which lancedb reads when it is imported, it logs every new table.
os.environ.setdefault("LANCEDB_LOG", "error")
