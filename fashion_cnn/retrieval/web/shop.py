"""A catalogue with the network that searches it, kept at the catalogue's newest version."""

import sys
import time
from typing import TYPE_CHECKING

from fashion_cnn.concepts import Concepts
from fashion_cnn.errors import UserError
from fashion_cnn.prediction import Predictor, TrainedNetwork, calibration_of
from fashion_cnn.retrieval.about import About, Edition
from fashion_cnn.retrieval.catalogue import Catalogue
from fashion_cnn.retrieval.searcher import Searcher
from fashion_cnn.retrieval.snapshot import Snapshot
from fashion_cnn.retrieval.vectors import network_of
from fashion_cnn.retrieval.web.latency import Latencies
from fashion_cnn.retrieval.web.refusals import NoCatalogue
from fashion_cnn.retrieval.web.storefront import Storefront
from fashion_cnn.runs import Run

if TYPE_CHECKING:
    from fashion_cnn.evaluation.temperature import Calibration


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
        # By whether the network looks at mirror images, too.
        self._calibrations: dict[bool, Calibration] = {}
        for flipped in (False, True):
            self._calibrations[flipped], remark = calibration_of(run, reject=reject, flip_average=flipped)
        self.calibrated = remark is None
        if remark:
            print(remark, file=sys.stderr)
        self._network: TrainedNetwork | None = None
        self._refused: Edition | None = None
        self._taught: float | None = None
        self._concepts: Concepts | None = None
        if catalogue.exists():
            self.problem = self._take_over()

    def open(self) -> Storefront:
        """What to search in; it stays as it is for whoever holds it. Raises NoCatalogue."""
        if self.storefront is None:
            raise NoCatalogue
        return self.storefront

    def refresh(self) -> None:
        """Take over the catalogue's newest version, if that is another one, and what the network has been taught since;
        what is in the way becomes `problem`.
        """
        problem = None
        try:
            if self.storefront is None and not self.catalogue.exists():
                return
            newest = self.catalogue.edition()
            if newest == self._refused:
                return
            if self.storefront is None or newest != self.storefront.snapshot.edition:
                problem = self._take_over()
                self.changed = time.time()
                print(f"{self.catalogue.uri}: version {newest.version} is searched now.", file=sys.stderr)
            elif self._taught != self._newest_teaching():
                problem = self._learn(self.storefront.searcher.network)
                if problem is None:
                    self._open(self.storefront.searcher)
        except Exception as error:  # each store has errors of its own, and searching goes on with what there is
            problem = str(error) or type(error).__name__
        if problem and problem != self.problem:
            print(problem, file=sys.stderr)
        self.problem = problem

    def _take_over(self) -> str | None:
        """Open the catalogue's newest version; why its concepts are those of before, if they are."""
        snapshot = Snapshot(self.catalogue)
        try:
            searcher = Searcher(snapshot, self._network_for(snapshot.about))
        except UserError:
            # Another network's: it need not be read again to be refused again.
            self._refused = snapshot.edition
            raise
        problem = self._learn(searcher.network)
        self._open(searcher)
        return problem

    def _learn(self, network: TrainedNetwork) -> str | None:
        """Read what the network has been taught; where that cannot be, it knows what it knew, and why is returned."""
        taught = self._newest_teaching()
        concepts = Concepts(self.run, network.identity)
        try:
            concepts.read()
        except UserError as error:
            return str(error)
        self._concepts, self._taught = concepts, taught
        return None

    def _open(self, searcher: Searcher) -> None:
        """Open the shop, or open it again, with the concepts that were read."""
        network = searcher.network
        calibration = self._calibrations[network.flip_average]
        predictor = Predictor(network, calibration)
        if self._concepts is not None and self._taught is not None:
            # They were learned from mirror images too, whatever the catalogue's vectors are of.
            network = network if network.flip_embeddings else network.with_mirror_images()
            predictor = Predictor(network, calibration, self._concepts.recognise)
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
        self._network = network_of(self.run, about)
        return self._network
