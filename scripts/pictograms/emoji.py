"""Unicode's list of emoji and their categories, emoji-test.txt (UTS #51)."""

import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from fashion_cnn.errors import UserError

# Subgroups of the list in each class; a name that ends in `-` is a prefix.
CATEGORIES = {
    "faces": ("face-",),
    "animals": ("animal-",),
    "plants": ("plant-", "food-fruit", "food-vegetable"),
    "food": ("food-prepared", "food-asian", "food-sweet", "drink"),
    "vehicles": ("transport-ground", "transport-water", "transport-air"),
    "buildings": ("place-building", "place-religious"),
    "weather": ("sky & weather",),
    "sports": ("sport",),
    "music": ("music", "musical-instrument"),
    "clothing": ("clothing",),
    "tools": ("tool",),
    "hands": ("hand-", "hands"),
}
# Emoji in these subgroups that do not fit the class.
MISFITS = {
    *("motorway", "railway track", "fuel pump", "bus stop", "stop sign", "construction", "police car light"),
    *("horizontal traffic light", "vertical traffic light", "oil drum", "anchor", "ring buoy", "wheel", "station"),
    *("gem stone", "ring", "lipstick", "prayer beads", "droplet", "water wave", "fire", "brick", "rock", "wood"),
    *("seat", "paw prints", "spider web", "feather", "wing", "microbe", "coral", "empty nest", "nest with eggs"),
}
LINE = re.compile(r"^(?P<points>[0-9A-F ]+?) *; fully-qualified *# \S+ E[\d.]+ (?P<name>.+)$")
VARIATION_SELECTOR = "FE0F"


@dataclass(frozen=True, order=True)
class Emoji:
    """An emoji of one character.

    Attributes:
        slug: its name as a class name, such as `grinning_face`.
        character: the character.
        category: its class with kind=categories.
    """

    slug: str
    character: str
    category: str


def read(file: Path) -> list[Emoji]:
    """Read the emoji of one character in the categories, sorted by name; UserError for a file of another kind."""
    emoji, category = [], None
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read: {error}") from error
    for line in lines:
        if line.startswith("# subgroup:"):
            category = _category(line.partition(":")[2].strip())
        elif (entry := LINE.match(line)) and category and entry["name"] not in MISFITS:
            points = [point for point in entry["points"].split() if point != VARIATION_SELECTOR]
            # Sequences of several characters are variants of skin, hair or gender.
            if len(points) == 1:
                emoji.append(Emoji(_slug(entry["name"]), chr(int(points[0], 16)), category))
    if not emoji:
        raise UserError(f"{file} lists no emoji in the format of Unicode's emoji-test.txt.")
    return sorted(emoji)


def _category(subgroup: str) -> str | None:
    """Return the category of a subgroup; None if it has none."""
    for name, parts in CATEGORIES.items():
        if any(subgroup == part or (part.endswith("-") and subgroup.startswith(part)) for part in parts):
            return name
    return None


def _slug(name: str) -> str:
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "_", plain).strip("_")
