"""Something to try the search with: a test image of each class."""

from dataclasses import dataclass

from hydra.utils import get_class

from fashion_cnn.data import TorchvisionDataModule
from fashion_cnn.errors import UserError
from fashion_cnn.prediction import data_set_of
from fashion_cnn.retrieval.web.asked import Asked
from fashion_cnn.retrieval.web.carried import carried
from fashion_cnn.retrieval.web.refusals import Refused
from fashion_cnn.retrieval.web.shown import Shown, shown_tensor
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
    if isinstance(data, TorchvisionDataModule) and not _is_here(data, run):
        return ()
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


def _is_here(data: TorchvisionDataModule, run: Run) -> bool:
    """Whether its test set would be read without a download, which nobody asked for who starts a server."""
    settings = run.config().data
    try:
        get_class(settings.dataset)(data.root, download=False, **(settings.test or {"train": False}))
    except Exception:  # whatever keeps it from being read
        return False
    return True
