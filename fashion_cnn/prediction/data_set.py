"""The data set of a run, wherever it lies by now."""

from hydra.utils import instantiate

from fashion_cnn.data import ImageDataModule
from fashion_cnn.runs import Run


def data_set_of(run: Run, root: str | None = None) -> ImageDataModule:
    """What a run was trained on; no image is read. root: where it lies, if not where the run had it."""
    settings = run.config().data
    if root is not None:
        settings.root = root
    data = instantiate(settings, _convert_="all")
    assert isinstance(data, ImageDataModule)
    return data
