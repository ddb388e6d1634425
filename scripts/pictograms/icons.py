"""Brands and their icons, of the npm package simple-icons (CC0): which there are, and each drawn large."""

import hashlib
import io
import json
import random
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from fashion_cnn.errors import UserError
from pictograms.symbols import Colour, Symbol, cut_out

VERSION = "16.37.0"
SHA256 = "cd9faf0e6faa8a8fdd15e9632ab4c86fcae4b986fe552b87673149847f2f671d"
DRAWN_SIZE = 320


@dataclass(frozen=True)
class Icon:
    """A brand's icon: an SVG file of one colour, and the brand's own colour where it is known."""

    file: Path
    colour: Colour | None

    @property
    def slug(self) -> str:
        return self.file.stem

    def symbol(self) -> Symbol:
        """Raises UserError for a file that is no SVG, or shows nothing."""
        import resvg_py

        try:
            drawn = resvg_py.svg_to_bytes(
                svg_path=str(self.file), width=DRAWN_SIZE, height=DRAWN_SIZE, skip_system_fonts=True
            )
        except ValueError as error:
            raise UserError(f"{self.file} is no SVG that can be drawn: {error}") from error
        picture = Image.open(io.BytesIO(drawn)).convert("RGBA")
        symbol = cut_out(picture, colour=self.colour, one_colour=True)
        if symbol is None:
            raise UserError(f"{self.file} shows nothing.")
        return symbol


def choose(folder: Path, brands: int, skip: int, seed: int) -> list[Icon]:
    """`brands` of them in an order that the seed alone gives, the first `skip` left out.

    Raises UserError where there are not so many.
    """
    icons = find(folder)
    random.Random(seed).shuffle(icons)
    chosen = icons[skip : skip + brands]
    if len(chosen) < brands:
        raise UserError(f"brands={brands} skip={skip}: {folder} has {len(icons)} different icons in all.", status=2)
    return chosen


def find(folder: Path) -> list[Icon]:
    """All icons of an unpacked package, by name; of those drawn alike one, and none whose name is a number.

    Raises UserError where the folder is no such package.
    """
    files = sorted((folder / "icons").glob("*.svg"))
    if not files:
        raise UserError(f"{folder} holds no icons/*.svg: give the folder of an unpacked simple-icons package.")
    colours = _colours(folder / "data" / "simple-icons.json")
    # Two names of one drawing cannot be told apart; a number would not be taken for a class's name everywhere.
    drawings = {_drawing(file): file for file in reversed(files) if not file.stem.isdigit()}
    return [Icon(file, colours.get(file.stem)) for file in sorted(drawings.values())]


def _drawing(file: Path) -> str:
    """The file without its title."""
    return file.read_text(encoding="utf-8").rpartition("</title>")[2]


def _colours(file: Path) -> dict[str, Colour]:
    """By slug; none where the package says nothing of colours."""
    if not file.exists():
        return {}
    colours = {}
    for brand in json.loads(file.read_text(encoding="utf-8")):
        red, green, blue = bytes.fromhex(brand["hex"])
        colours[brand["slug"]] = (red, green, blue)
    return colours


def fingerprint(icons: list[Icon]) -> str:
    """Of their names, colours and drawings."""
    parts = (f"{icon.slug} {icon.colour} {_drawing(icon.file)}" for icon in icons)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def fetch(into: Path) -> Path:
    """The package's folder below `into`, got through npm unless it is there. Raises UserError if it cannot be."""
    folder = into / f"simple-icons-{VERSION}"
    if folder.exists():
        return folder
    if shutil.which("npm") is None:
        raise UserError(
            f"npm, which gets the icons, is not installed. Install it, or unpack the package simple-icons {VERSION} "
            "yourself and say where: simple_icons=DIR"
        )
    into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=into, prefix=".") as unfinished:
        archive = _pack(Path(unfinished))
        with tarfile.open(archive) as package:
            package.extractall(unfinished, filter="data")
        Path(unfinished, "package").replace(folder)
    return folder


def _pack(into: Path) -> Path:
    command = ["npm", "pack", f"simple-icons@{VERSION}", "--silent", "--fetch-retries=1", "--fetch-timeout=60000"]
    ended = subprocess.run(command, cwd=into, capture_output=True, text=True, check=False)
    archives = list(into.glob("*.tgz"))
    if ended.returncode or not archives:
        raise UserError(
            f"npm could not get simple-icons {VERSION}: check the network and npm's registry (`{' '.join(command[:3])}`"
            f" says more), or say where the package is unpacked: simple_icons=DIR"
        )
    if hashlib.sha256(archives[0].read_bytes()).hexdigest() != SHA256:
        raise UserError(f"What npm got as simple-icons {VERSION} is not the package that was tested: its sum differs.")
    return archives[0]
