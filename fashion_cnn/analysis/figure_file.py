"""Figures as files."""

import io
from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from fashion_cnn.runs import write_whole


def save_figure(figure: Figure, path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write it so that `path` holds the old figure or the new, never a part of one.

    In the format of the path's suffix; metadata: texts in the file. Raises ValueError for a format that there is not.
    """
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix[1:] or "png", dpi=110, metadata=metadata)
    write_whole(path, content.getvalue())
