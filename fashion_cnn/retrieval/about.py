"""What a catalogue's table says of itself, in its schema: whose vectors it holds, and which making of it this is."""

import json
import secrets
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import pyarrow as pa

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


def about_of(table: Any) -> About:
    """Whose vectors a LanceDB table of products holds."""
    return About(**json.loads(table.schema.metadata[_ABOUT]))
