"""Icons of brands as symbols, from the npm package simple-icons (CC0)."""

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
    """A brand's icon: an SVG file of one colour, and the brand's colour if it is known."""

    file: Path
    colour: Colour | None

    @property
    def slug(self) -> str:
        return self.file.stem

    def symbol(self) -> Symbol:
        """Draw the symbol. Raises UserError for an invalid or empty SVG file."""
        import resvg_py

        try:
            drawn = resvg_py.svg_to_bytes(
                svg_path=str(self.file), width=DRAWN_SIZE, height=DRAWN_SIZE, skip_system_fonts=True
            )
        except ValueError as error:
            raise UserError(f"{self.file} is not a valid SVG file: {error}") from error
        picture = Image.open(io.BytesIO(drawn)).convert("RGBA")
        symbol = cut_out(picture, colour=self.colour, one_colour=True)
        if symbol is None:
            raise UserError(f"{self.file} is an empty drawing.")
        return symbol


def choose(folder: Path, brands: int, skip: int, seed: int) -> list[Icon]:
    """Choose icons in the order of the seed, without the first `skip`.

    Raises:
        UserError: there are fewer icons.
    """
    icons = find(folder)
    random.Random(seed).shuffle(icons)
    chosen = icons[skip : skip + brands]
    if len(chosen) < brands:
        raise UserError(f"brands={brands} skip={skip}: {folder} has only {len(icons)} different icons.", status=2)
    return chosen


def find(folder: Path) -> list[Icon]:
    """List the icons of an unpacked package by name, without duplicate drawings and names that are numbers.

    Raises:
        UserError: the folder is not such a package.
    """
    files = sorted((folder / "icons").glob("*.svg"))
    if not files:
        raise UserError(f"{folder} contains no icons/*.svg: give the folder of an unpacked simple-icons package.")
    colours = _colours(folder / "data" / "simple-icons.json")
    # Equal drawings are indistinguishable, and data.left_out reads numbers as class numbers.
    drawings = {_drawing(file): file for file in reversed(files) if not file.stem.isdigit()}
    return [Icon(file, colours.get(file.stem)) for file in sorted(drawings.values())]


def _drawing(file: Path) -> str:
    """Return the file's content without its title."""
    return file.read_text(encoding="utf-8").rpartition("</title>")[2]


def _colours(file: Path) -> dict[str, Colour]:
    """Return the colours by slug; empty if the package has none."""
    if not file.exists():
        return {}
    colours = {}
    for brand in json.loads(file.read_text(encoding="utf-8")):
        red, green, blue = bytes.fromhex(brand["hex"])
        colours[brand["slug"]] = (red, green, blue)
    return colours


def fingerprint(icons: list[Icon]) -> str:
    """Hash the names, colours and drawings."""
    parts = (f"{icon.slug} {icon.colour} {_drawing(icon.file)}" for icon in icons)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def fetch(into: Path) -> Path:
    """Download and unpack the package with npm, unless its folder exists. Raises UserError if that fails."""
    folder = into / f"simple-icons-{VERSION}"
    if folder.exists():
        return folder
    if shutil.which("npm") is None:
        raise UserError(
            f"npm, which downloads the icons, is not installed. Install it, or unpack the package simple-icons "
            f"{VERSION} yourself and give its folder with simple_icons=DIR."
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
            f"npm cannot download simple-icons {VERSION}: check the network and npm's registry with "
            f"`{' '.join(command[:3])}`, or give the folder of the unpacked package with simple_icons=DIR."
        )
    if hashlib.sha256(archives[0].read_bytes()).hexdigest() != SHA256:
        raise UserError(f"The downloaded package simple-icons {VERSION} has another SHA-256 than the tested one.")
    return archives[0]
