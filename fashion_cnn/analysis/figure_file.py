"""Figures as PNG files."""

import io
from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from fashion_cnn.runs import write_whole


def save_figure(figure: Figure, path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write it so that `path` holds the old figure or the new, never a part of one; metadata: texts in the file."""
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110, metadata=metadata)
    write_whole(path, png.getvalue())
