"""What a catalogue's table says of itself, in its schema: whose vectors it holds, and which making of it this is."""

import json
import secrets
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import pyarrow as pa

from fashion_cnn.errors import UserError
from fashion_cnn.pictures.preparation import Invert

_ABOUT = b"fashion_cnn"
# Of a table that was made anew: its versions count from the start again.
_MADE = b"fashion_cnn_made"


@dataclass(frozen=True)
class About:
    """Whose vectors a catalogue holds.

    network: `TrainedNetwork.identity`. run: the directory of that run then. dimensions: of a vector.
    flip_average: whether the mirror images were looked at too. invert: see `Preparation`. note: what people are to know
    of the products, if anything. class_weight: see `search_vectors`.
    """

    network: str
    run: str
    dimensions: int
    flip_average: bool
    invert: Invert
    note: str = ""
    # Catalogues that were made before there was a choice have none.
    class_weight: float = 0.0


class Edition(NamedTuple):
    """made: of the making of the table. version: of the table, which counts up with each change."""

    made: str
    version: int


def described(schema: pa.Schema, about: About) -> pa.Schema:
    """The schema of a table that says `about` of itself."""
    return schema.with_metadata({_ABOUT: json.dumps(asdict(about)).encode()})


def made_anew(schema: pa.Schema) -> pa.Schema:
    """That of a further making of it."""
    return schema.with_metadata(schema.metadata | {_MADE: secrets.token_hex(8).encode()})


def says_of_itself(schema: pa.Schema) -> bool:
    """Whether a table of this schema is a catalogue's."""
    return _ABOUT in (schema.metadata or {})


def edition_of(table: Any) -> Edition:
    """Of a LanceDB table of products, as it is opened."""
    return Edition((table.schema.metadata or {}).get(_MADE, b"").decode(), int(table.version))


def require_same(before: About, now: About, uri: str) -> None:
    """Raises UserError where products of `now` cannot stand beside those of `before` in the catalogue at `uri`."""
    if before.network != now.network:
        raise UserError(
            f"{uri} holds what another network saw ({before.run}): index with that run, name another catalogue=DIR, or "
            "say rebuild=true to replace all of it."
        )
    if before.dimensions != now.dimensions and before.class_weight == now.class_weight:
        raise UserError(f"{uri} was made by another version of fashion_cnn: say rebuild=true to replace it.")
    for option in ("class_weight", "flip_average", "invert"):
        if (made_with := getattr(before, option)) != getattr(now, option):
            raise UserError(
                f"{uri} was made with {option}={str(made_with).lower()}: say the same, or rebuild=true to replace all "
                "of it."
            )
    if before.note != now.note:
        raise UserError(
            f"{uri} holds {_whose(before)}, and these are {_whose(now)}: name another catalogue=DIR for them, or say "
            "rebuild=true to replace all of it."
        )


def _whose(about: About) -> str:
    return "the images of a data set, with made-up prices" if about.note else "a shop's own products"


def about_of(table: Any) -> About:
    """Whose vectors a LanceDB table of products holds."""
    return About(**json.loads(table.schema.metadata[_ABOUT]))
