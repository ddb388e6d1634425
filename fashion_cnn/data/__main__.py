"""`python -m fashion_cnn.data ROOT [PACKAGE]` gets Fashion-MNIST into ROOT, for the set-up script.

PACKAGE is the folder into which Debian's package was unpacked; the system's where it is left out.
"""

import sys
from pathlib import Path

from fashion_cnn.data.fashion_mnist import ensure
from fashion_cnn.errors import UserError

try:
    ensure(*(Path(folder).expanduser() for folder in sys.argv[1:]))
except UserError as error:
    sys.exit(f"error: {error}")
