"""Which drawings there are, and of what: Unicode's list of emoji, emoji-test.txt (UTS #51)."""

import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from fashion_cnn.errors import UserError

# By class, the subgroups of the list that are of it.
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
# Found among the above by Unicode, which a person would not look for there.
ELSEWHERE = {
    *("motorway", "railway track", "fuel pump", "bus stop", "stop sign", "construction", "police car light"),
    *("horizontal traffic light", "vertical traffic light", "oil drum", "anchor", "ring buoy", "wheel", "station"),
    *("gem stone", "ring", "lipstick", "prayer beads", "droplet", "water wave", "fire", "brick", "rock", "wood"),
    *("seat", "paw prints", "spider web", "feather", "wing", "microbe", "coral", "empty nest", "nest with eggs"),
}
LINE = re.compile(r"^(?P<points>[0-9A-F ]+?) *; fully-qualified *# \S+ E[\d.]+ (?P<name>.+)$")
VARIATION_SELECTOR = "FE0F"


@dataclass(frozen=True, order=True)
class Emoji:
    """One character, its name as a class's (`grinning_face`), and its category."""

    slug: str
    character: str
    category: str


def read(file: Path) -> list[Emoji]:
    """Those of the categories that are one character, by name. Raises UserError for a file of another kind."""
    found, category = [], None
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read: {error}") from error
    for line in lines:
        if line.startswith("# subgroup:"):
            category = _category(line.partition(":")[2].strip())
        elif (entry := LINE.match(line)) and category and entry["name"] not in ELSEWHERE:
            points = [point for point in entry["points"].split() if point != VARIATION_SELECTOR]
            # Those of several characters are variants in skin, hair or gender.
            if len(points) == 1:
                found.append(Emoji(_slug(entry["name"]), chr(int(points[0], 16)), category))
    if not found:
        raise UserError(f"{file} lists no emoji as Unicode's emoji-test.txt does.")
    return sorted(found)


def _category(subgroup: str) -> str | None:
    """An entry that ends in `-` is the beginning of names."""
    for name, parts in CATEGORIES.items():
        if any(subgroup == part or (part.endswith("-") and subgroup.startswith(part)) for part in parts):
            return name
    return None


def _slug(name: str) -> str:
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "_", plain).strip("_")
