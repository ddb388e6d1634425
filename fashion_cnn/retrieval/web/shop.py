"""A catalogue with the network that searches it, kept at the catalogue's newest version."""

import sys
import time

from fashion_cnn.concepts import Concepts
from fashion_cnn.evaluation.temperature import calibrate
from fashion_cnn.prediction import Predictor, TrainedNetwork, validation_predictions
from fashion_cnn.retrieval.catalogue import About, Catalogue
from fashion_cnn.retrieval.searcher import Searcher
from fashion_cnn.retrieval.snapshot import Snapshot
from fashion_cnn.retrieval.web.latency import Latencies
from fashion_cnn.retrieval.web.refusals import NoCatalogue
from fashion_cnn.retrieval.web.storefront import Storefront
from fashion_cnn.runs import Run


class Shop:
    """storefront: the newest version of the catalogue that could be taken over, None before there is one. problem: why
    the newest could not be, if so. changed: when another version was taken over, in seconds since 1970. calibrated:
    whether the network's probabilities are.

    reject: the share of validation images that are called none of the classes.
    Raises UserError where the catalogue is of another network.
    """

    def __init__(self, run: Run, catalogue: Catalogue, *, reject: float) -> None:
        self.run = run
        self.catalogue = catalogue
        self.storefront: Storefront | None = None
        self.problem: str | None = None
        self.changed: float | None = None
        self.latencies = Latencies()
        validation = validation_predictions(run)
        self.calibrated = validation is not None
        self._calibration = calibrate(validation, reject=reject) if validation else None
        self._network: TrainedNetwork | None = None
        self._taught: float | None = None
        if catalogue.exists():
            self._take_over()

    def open(self) -> Storefront:
        """What to search in; it stays as it is for whoever holds it. Raises NoCatalogue."""
        if self.storefront is None:
            raise NoCatalogue
        return self.storefront

    def refresh(self) -> None:
        """Take over the catalogue's newest version, if that is another one, and what the network has been taught since;
        what is in the way becomes `problem`.
        """
        try:
            if self.storefront is None and not self.catalogue.exists():
                return
            newest = self.catalogue.newest()
            if self.storefront is None or newest != self.storefront.snapshot.version:
                self._take_over()
                self.changed = time.time()
                print(f"{self.catalogue.uri}: version {newest} is searched now.", file=sys.stderr)
            elif self._taught != self._newest_teaching():
                self._teach(self.storefront.searcher)
            self.problem = None
        except Exception as error:  # each store has errors of its own, and searching goes on with what there is
            problem = str(error) or type(error).__name__
            if problem != self.problem:
                print(problem, file=sys.stderr)
            self.problem = problem

    def _take_over(self) -> None:
        snapshot = Snapshot(self.catalogue)
        network = self._network_for(snapshot.about)
        self._teach(Searcher(snapshot, network))

    def _teach(self, searcher: Searcher) -> None:
        """Open the shop, or open it again, with the concepts that the network has been taught."""
        self._taught = self._newest_teaching()
        network = searcher.network
        predictor = Predictor(network, self._calibration, Concepts(self.run, network.identity).recognise)
        # One assignment: a request sees the shop of before, or this one.
        self.storefront = Storefront(searcher, predictor)

    def _newest_teaching(self) -> float | None:
        """When a concept was last taught or forgotten, in seconds since 1970."""
        return self.run.concepts.stat().st_mtime if self.run.concepts.exists() else None

    def _network_for(self, about: About) -> TrainedNetwork:
        """The run's network, looking at pictures as it did for the catalogue."""
        before = self._network
        if before and (before.flip_average, before.preparation.invert) == (about.flip_average, about.invert):
            return before
        self._network = TrainedNetwork(self.run, flip_average=about.flip_average, invert=about.invert)
        return self._network
