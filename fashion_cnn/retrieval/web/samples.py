"""Something to try the search with: a test image of each class, or else a product of each category."""

from dataclasses import dataclass

from fashion_cnn.errors import UserError
from fashion_cnn.prediction import data_set_of
from fashion_cnn.retrieval.web.asked import Asked
from fashion_cnn.retrieval.web.carried import carried
from fashion_cnn.retrieval.web.refusals import Refused
from fashion_cnn.retrieval.web.shown import Shown, shown, shown_tensor
from fashion_cnn.retrieval.web.storefront import Storefront
from fashion_cnn.runs import Run

_MOST = 10


@dataclass(frozen=True)
class Sample:
    name: str
    picture: Shown
    link: str


def samples_of_test_set(run: Run, root: str | None) -> tuple[Sample, ...]:
    """The first test image of each class, which no catalogue of training images holds; none where the data is not here.

    root: where it lies, if not where the run had it.
    """
    data = data_set_of(run, root)
    try:
        images, targets = data.load(train=False)
        members = data.test_order(targets)
    except (UserError, RuntimeError, OSError, ValueError):
        return ()
    found = []
    for label, name in enumerate(data.all_class_names[:_MOST]):
        rows = members[targets[members] == label]
        if len(rows):
            picture = images[rows[0]]
            try:
                found.append(Sample(name, shown_tensor(picture), Asked(picture=[carried(picture)]).link()))
            except Refused:
                return ()
    return tuple(found)


def samples_of_catalogue(front: Storefront) -> tuple[Sample, ...]:
    """A product of each of the largest categories."""
    ids = front.examples
    rows = [front.snapshot.row_of[one] for one in ids]
    names = [front.snapshot.described(row)["category"] for row in rows]
    pictures = map(shown, front.snapshot.thumbnails(rows))
    return tuple(
        Sample(name, picture, Asked(like=[one]).link()) for name, picture, one in zip(names, pictures, ids, strict=True)
    )
