"""What a run's network says of picture files, in probabilities."""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from fashion_cnn.evaluation.temperature import Calibration
from fashion_cnn.pictures import UnreadablePictureError, read_pictures
from fashion_cnn.prediction.answers import Answer
from fashion_cnn.prediction.trained import Seen, TrainedNetwork


class Predictor:
    """Says what is on pictures, as a run's network sees them.

    calibration: how logits become probabilities, such as `calibrate(validation_predictions(run))`. taught: which of the
    concepts that it was taught are in each of N embeddings `(N, D)`, with their scores.
    """

    def __init__(
        self,
        network: TrainedNetwork,
        calibration: Calibration | None = None,
        taught: Callable[[Tensor], list[list[tuple[str, float]]]] = lambda embeddings: [[] for _ in embeddings],
    ) -> None:
        self.network = network
        self.calibration = calibration or Calibration()
        self.taught = taught

    def answers(self, paths: Iterable[Path], *, top_k: int = 3) -> Generator[Answer]:
        """What is on each picture, with its `top_k` likeliest classes, in the given order, batch by batch."""
        with closing(read_pictures(paths, self.network.preparation)) as read:
            while batch := list(islice(read, self.network.batch_size)):
                pictures = {path: picture for path, picture in batch if isinstance(picture, Tensor)}
                said = {}
                if pictures:
                    seen = self.network.look(torch.stack(list(pictures.values())))
                    said = dict(zip(pictures, self.said(seen, list(pictures), top_k=top_k), strict=True))
                for path, picture in batch:
                    if isinstance(picture, UnreadablePictureError):
                        yield Answer(path, error=str(picture))
                    else:
                        yield said[path]

    def said(self, seen: Seen, paths: Sequence[Path], *, top_k: int = 3) -> Iterator[Answer]:
        """What is on each picture that the network has looked at, with its `top_k` likeliest classes."""
        # Of classes that are as likely, which bfloat16 makes common, the first comes first, as accuracy counts them.
        likeliest = self.calibration.probabilities(seen.logits).sort(dim=1, descending=True, stable=True)
        shares, labels = likeliest.values[:, :top_k].tolist(), likeliest.indices[:, :top_k].tolist()
        for path, best, numbers, taught in zip(paths, shares, labels, self.taught(seen.embeddings), strict=True):
            classes = tuple(zip((self.network.class_names[label] for label in numbers), best, strict=True))
            unsure = classes[0][1] < self.calibration.threshold
            yield Answer(path, classes, none_of_these=unsure, taught=tuple(taught))
