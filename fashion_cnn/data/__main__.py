"""Get Fashion-MNIST into ROOT, for the set-up script: `python -m fashion_cnn.data ROOT [PACKAGE_ROOT]`.

PACKAGE_ROOT is the folder that Debian's package was unpacked into, by default `/`.
"""

import sys
from pathlib import Path

from fashion_cnn.data.fashion_mnist import ensure_files
from fashion_cnn.errors import UserError

if __name__ == "__main__":
    try:
        ensure_files(*(Path(folder).expanduser() for folder in sys.argv[1:]))
    except UserError as error:
        sys.exit(f"error: {error}")
