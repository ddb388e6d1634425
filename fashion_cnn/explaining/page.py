"""A page for each picture: what the network sees, what mattered, and what it has seen that is like it."""

from itertools import count
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fashion_cnn.analysis.figure_file import save_figure
from fashion_cnn.data import ImageDataModule
from fashion_cnn.errors import UserError
from fashion_cnn.evaluation.measuring import rebuild
from fashion_cnn.explaining.drawing import Explanation, draw
from fashion_cnn.explaining.grad_cam import grad_cam
from fashion_cnn.explaining.gradients import integrated_gradients
from fashion_cnn.explaining.neighbours import TrainingImages
from fashion_cnn.models import Ensemble
from fashion_cnn.pictures import decode
from fashion_cnn.pictures.preparation import Invert
from fashion_cnn.prediction import calibration_of
from fashion_cnn.prediction.answers import NONE_OF_THESE
from fashion_cnn.runs import Run

# In a page's own metadata: the picture that it is of.
_SOURCE = "Source"


class Explainer:
    """Explains pictures by a run's network, in float32.

    about: the class to explain, by name; None for the one that the network says. neighbours: how many training images
    to show. reject: as in `calibrate`. invert: see `Preparation`. remark: what people are to know of the probabilities.
    Raises UserError where the run's weights or data cannot be read, or there is no such class.
    """

    def __init__(
        self, run: Run, *, data_root: str | None, neighbours: int, about: str | None, reject: float, invert: Invert
    ) -> None:
        _, module, data = rebuild(run, data_root)
        if isinstance(module.network, Ensemble):
            raise UserError(f"{run.path} is an ensemble, whose networks look each elsewhere: explain one network.")
        self.module, self.data = module, data
        self.about = None if about is None else _label(about, data)
        self.preparation = data.preparation(invert)
        self.calibration, self.remark = calibration_of(run, reject=reject)
        self.training_images = TrainingImages(self.module, data)
        self.neighbours = neighbours

    def explain(self, path: Path, folder: Path) -> Path:
        """Write the page of one picture into `folder`. Raises UnreadablePictureError where it is none."""
        picture = decode(path, enough=self.preparation.enough)
        image = self.preparation(picture)
        normalised = self.data.normalise(image[None])
        names = self.data.class_names
        with torch.inference_mode():
            logits = self.module(normalised)[0]
        said = int(logits.argmax())
        probability = self.calibration.probabilities(logits[None])[0, said]
        unsure = probability < self.calibration.threshold
        answer = f"{NONE_OF_THESE} (most like {names[said]})" if unsure else names[said]
        label = said if self.about is None else self.about
        classes = torch.tensor([label])
        black = self.data.normalise(torch.zeros_like(image))
        network = self.module.network
        about = "" if label == said else f"; explained: {names[label]}"
        near = self.training_images.nearest(image[None], self.neighbours)
        explanation = Explanation(
            title=f"{path.name}: {answer}, {probability:.0%}{about}",
            image=image,
            places=grad_cam(network, normalised.clone(), classes)[0],
            attribution=integrated_gradients(network, normalised, classes, black)[0],
            neighbours=[
                (seen, f"{names[target]}\nimage {index}, {likeness:.2f}")
                for seen, target, index, likeness in zip(
                    near.images[0],
                    near.targets[0].tolist(),
                    near.indices[0].tolist(),
                    near.similarity[0].tolist(),
                    strict=True,
                )
            ],
        )
        page = _page(folder, path)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            figure = draw(explanation, np.asarray(self.preparation.flattened(picture).convert("RGB")))
            save_figure(figure, page, {_SOURCE: _described(path)})
        except OSError as error:
            raise UserError(f"{page} cannot be written ({error.strerror}): say out=DIR.") from error
        return page


def _page(folder: Path, path: Path) -> Path:
    """Named as the picture is, with a number where that is the page of another one."""
    pages = (folder / (f"{path.name}.png" if number == 1 else f"{path.name}-{number}.png") for number in count(1))
    return next(page for page in pages if not page.exists() or _is_of(page, path))


def _is_of(page: Path, path: Path) -> bool:
    try:
        with Image.open(page) as image:
            return image.info.get(_SOURCE) == _described(path)
    except OSError:
        return False


def _described(path: Path) -> str:
    """The whole path, as a text whatever its name is."""
    return str(path.absolute()).encode(errors="backslashreplace").decode()


def _label(name: str, data: ImageDataModule) -> int:
    if name not in data.class_names:
        raise UserError(f"about={name} is no class: choose one of {', '.join(data.class_names)}.")
    return list(data.class_names).index(name)
