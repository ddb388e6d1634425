"""From what a request asks for to what is found, each stage with its time."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from fashion_cnn.errors import UserError
from fashion_cnn.pictures import Preparation, TooManyPixelsError, UnreadablePictureError, decode
from fashion_cnn.prediction import Answer
from fashion_cnn.retrieval.searcher import Found, Query
from fashion_cnn.retrieval.web.asked import Asked
from fashion_cnn.retrieval.web.carried import uncarried
from fashion_cnn.retrieval.web.latency import STAGES, Stopwatch
from fashion_cnn.retrieval.web.refusals import Refused, no_product
from fashion_cnn.retrieval.web.storefront import Storefront


@dataclass(frozen=True)
class Answered:
    """found: this page's products. pictures, other_pictures: to be like and not to be like, `(C, H, W)` uint8. said:
    what the network says of each of the former, then of the latter. watch: the time of each stage.
    """

    found: Found
    pictures: tuple[Tensor, ...]
    other_pictures: tuple[Tensor, ...]
    said: tuple[Answer, ...]
    watch: Stopwatch


def answer(
    front: Storefront,
    asked: Asked,
    *,
    top_k: int,
    uploaded: Sequence[bytes] = (),
    other_uploaded: Sequence[bytes] = (),
    most_pixels: int = 0,
) -> Answered:
    """Search. uploaded, other_uploaded: picture files beside those of the link. Raises Refused."""
    watch = Stopwatch()
    decoding, embedding, searching, describing = STAGES
    preparation = front.searcher.network.preparation
    for one in (*asked.like, *asked.unlike):
        if one not in front.snapshot.row_of:
            raise no_product(one)
    with watch.measuring(decoding):
        pictures, others = (
            tuple(uncarried(text, preparation.image_shape) for text in texts)
            + prepared(files, preparation, most_pixels)
            for texts, files in ((asked.picture, uploaded), (asked.unlike_picture, other_uploaded))
        )
    query = Query(
        pictures=pictures,
        other_pictures=others,
        like=tuple(asked.like),
        unlike=tuple(asked.unlike),
        words=asked.text,
        conditions=asked.conditions(front.snapshot.attributes.schema),
        top_k=top_k,
        skip=(asked.page - 1) * top_k,
    )
    with watch.measuring(embedding):
        seen = front.searcher.look(query)
        said: tuple[Answer, ...] = ()
        if seen is not None:
            says = front.predictor.network
            known = seen if says is front.searcher.network else says.look(torch.stack([*pictures, *others]))
            said = tuple(front.predictor.said(known, [Path()] * len(known.logits)))
    with watch.measuring(searching):
        try:
            ranked = front.searcher.rank(query, seen)
        except UserError as error:
            raise Refused(422, str(error)) from error
    with watch.measuring(describing):
        found = front.searcher.found(ranked)
    if seen is None:  # these stages were none
        del watch.milliseconds[decoding], watch.milliseconds[embedding]
    return Answered(found, pictures, others, said, watch)


def prepared(files: Sequence[bytes], preparation: Preparation, most_pixels: int) -> tuple[Tensor, ...]:
    """The pictures of files `(C, H, W)` uint8 as the network takes them. Raises Refused, naming which."""
    count = len(files)
    names = ["The picture"] if count == 1 else [f"Picture {place} of {count}" for place in range(1, count + 1)]
    return tuple(_prepared(*each, preparation, most_pixels) for each in zip(names, files, strict=True))


def _prepared(name: str, content: bytes, preparation: Preparation, most_pixels: int) -> Tensor:
    try:
        return preparation(decode(content, enough=preparation.enough, most=most_pixels))
    except TooManyPixelsError as error:
        raise Refused(413, f"{name} {error}.") from error
    except UnreadablePictureError as error:
        raise Refused(415, f"{name} {error}.") from error
    except (ValueError, OSError, Image.DecompressionBombError) as error:
        raise Refused(415, f"{name} cannot be used: save it as a JPEG or PNG file.") from error
