"""Search evaluation: metrics of ranked lists, nearest neighbours, baselines, and the command on a tiny run."""

import json

import numpy as np
import pytest
import torch
from conftest import TINY_DATA
from tiny_images import TinyDataModule
from torch.nn import functional

from fashion_cnn.cli.main import compose
from fashion_cnn.errors import UserError
from fashion_cnn.evaluate_search import main
from fashion_cnn.inference.network import TrainedNetwork
from fashion_cnn.metrics.intervals import mean_interval
from fashion_cnn.metrics.ranking import NETWORK, evaluate_instances, evaluate_labelled, evaluate_ranking
from fashion_cnn.retrieval.evaluation import (
    COMBINED,
    AlteredCopies,
    PrincipalComponents,
    SearchImages,
    evaluate_search,
    load_search_images,
    nearest,
    pixels,
    summarise_runs,
    unit_pixels,
)
from fashion_cnn.retrieval.report import plot_outcome
from fashion_cnn.runs import Run
from fashion_cnn.train import train


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs on tiny synthetic images: of all four classes, and of two."""
    folder = tmp_path_factory.mktemp("runs")

    def run(*overrides):
        results = train(compose(overrides=[*TINY_DATA, f"runs_dir='{folder}'", "callbacks=essential", *overrides]))
        return Run(folder / results["run"])

    return {"whole": run("trainer.max_epochs=8"), "without": run("data.left_out=[1,3]", "data.val_size=16")}


# Metrics of ranked lists


def test_precision_recall_and_average_precision_equal_values_computed_by_hand():
    # Ranks 1, 3 and 4 of ten are relevant; five products are relevant in all.
    relevant = torch.zeros(1, 10, dtype=torch.bool)
    relevant[0, [0, 2, 3]] = True
    metrics = evaluate_ranking(relevant, torch.tensor([5]))
    assert {k: mean.estimate for k, mean in metrics.precision.items()} == pytest.approx({1: 1.0, 10: 0.3})
    assert {k: mean.estimate for k, mean in metrics.recall.items()} == {1: 1.0, 10: 1.0}
    summed = 1 + 2 / 3 + 3 / 4
    assert metrics.map_at_100.estimate == pytest.approx(summed / 3)
    assert metrics.map_at_r.estimate == pytest.approx(summed / 5)
    assert metrics.curve[:4] == pytest.approx((1, 1 / 2, 2 / 3, 3 / 4))


def test_map_at_r_ends_at_the_number_of_relevant_products():
    relevant = torch.tensor([[False, True], [True, False]])
    metrics = evaluate_ranking(relevant, torch.tensor([1, 1]))
    assert (metrics.map_at_100.estimate, metrics.map_at_r.estimate) == (0.75, 0.5)


def test_a_query_without_relevant_hits_counts_as_zero():
    relevant = torch.tensor([[True] * 10, [False] * 10])
    metrics = evaluate_ranking(relevant, torch.tensor([10, 0]))
    assert (metrics.queries, metrics.precision[1].estimate, metrics.recall[10].estimate) == (2, 0.5, 0.5)
    assert (metrics.map_at_100.estimate, metrics.map_at_r.estimate) == (0.5, 0.5)


def test_metrics_equal_those_of_a_plain_loop():
    generator = torch.Generator().manual_seed(1)
    relevant = torch.rand(30, 120, generator=generator) < torch.rand(30, 1, generator=generator) * 0.3
    in_all = relevant.sum(dim=1) + 7
    metrics = evaluate_ranking(relevant, in_all)
    mean_average, at_r = [], []
    for row, total in zip(relevant.tolist(), in_all.tolist(), strict=True):
        right, summed, summed_to_r = 0, 0.0, 0.0
        for place, hit in enumerate(row[:100], start=1):
            if hit:
                right += 1
                summed += right / place
                summed_to_r += right / place * (place <= total)
        mean_average.append(summed / right if right else 0.0)
        # The sum ends at rank R (Musgrave et al., 2020).
        at_r.append(summed_to_r / min(100, total))
    assert metrics.map_at_100.estimate == pytest.approx(np.mean(mean_average))
    assert metrics.map_at_r.estimate == pytest.approx(np.mean(at_r))
    for k in (1, 10, 100):
        assert metrics.precision[k].estimate == pytest.approx(np.mean([sum(row[:k]) / k for row in relevant.tolist()]))
        assert metrics.recall[k].estimate == pytest.approx(np.mean([any(row[:k]) for row in relevant.tolist()]))


def test_intervals_cover_the_true_value_at_their_nominal_rate():
    generator = torch.Generator().manual_seed(0)
    for draw in (lambda: torch.rand(200, generator=generator) < 0.9, lambda: torch.rand(200, generator=generator)):
        truth = 0.9 if draw().dtype == torch.bool else 0.5
        held = np.mean([mean.low <= truth <= mean.high for mean in (mean_interval(draw()) for _ in range(400))])
        assert 0.91 < held < 0.99


def test_evaluating_no_queries_fails():
    with pytest.raises(UserError, match="nothing can be measured"):
        evaluate_ranking(torch.zeros(0, 10, dtype=torch.bool), torch.zeros(0))


# Vectors and nearest neighbours


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_nearest_neighbours_do_not_depend_on_the_block_size(metric, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    queries, catalogue = torch.randn(23, 5, generator=generator), torch.randn(70, 5, generator=generator)
    if metric == "cosine":
        queries, catalogue = functional.normalize(queries, dim=1), functional.normalize(catalogue, dim=1)
        expected = (-queries @ catalogue.T).argsort(dim=1)
    else:
        expected = torch.cdist(queries, catalogue).argsort(dim=1)
        assert not expected[:, :10].equal(nearest(queries, catalogue, 10)), "not trivial"
    for held in (70 * 4, 2**24):
        monkeypatch.setattr("fashion_cnn.retrieval.evaluation._MAX_SIMILARITIES", held)
        steps = []
        rows = nearest(queries, catalogue, 10, metric=metric, progress=steps.append)
        assert rows.equal(expected[:, :10])
        assert sum(steps) == 23
    assert nearest(queries, catalogue, 100).shape == (23, 70)


def test_principal_components_equal_those_of_the_svd():
    images, _ = TinyDataModule(mean=[0.5], std=[0.25], val_size=32).load(train=True)
    pca = PrincipalComponents.fit(images, 3)
    centred = pixels(images) - pixels(images).mean(dim=0)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    cosines = (pca.components * directions[:3].T).sum(dim=0).abs()
    assert cosines.tolist() == pytest.approx([1, 1, 1], abs=1e-3)
    assert pca.transform(images).norm(dim=1).tolist() == pytest.approx([1] * len(images), abs=1e-5)
    assert unit_pixels(images).norm(dim=1).tolist() == pytest.approx([1] * len(images), abs=1e-5)


def test_retrieval_by_class_of_points_placed_by_hand():
    # Two of class 0 on the right, three of class 1 above; the last query lies among those of the other class.
    catalogue = functional.normalize(torch.tensor([[1, 0.1], [1, 0.2], [0.1, 1], [0.2, 1], [0.3, 1]]), dim=1)
    queries = functional.normalize(torch.tensor([[1.0, 0], [0, 1], [1, 0.15]]), dim=1)
    labels, of_queries = torch.tensor([0, 0, 1, 1, 1]), torch.tensor([0, 1, 1])
    metrics = evaluate_labelled(nearest(queries, catalogue, 100), of_queries, labels, ("right", "above"))
    assert metrics.overall.precision[1].estimate == pytest.approx(2 / 3)
    assert {name: by_label.precision[1].estimate for name, by_label in metrics.by_class.items()} == {
        "right": 1.0,
        "above": 0.5,
    }
    # For the last query, ranks 3, 4 and 5 are relevant.
    assert metrics.by_class["above"].map_at_100.estimate == pytest.approx((1 + (1 / 3 + 2 / 4 + 3 / 5) / 3) / 2)
    assert metrics.chance == pytest.approx((2 / 5 + 3 / 5 + 3 / 5) / 3)


def test_only_the_original_is_relevant_for_an_altered_copy():
    ranked = torch.tensor([[4, 1, 2, 3, 0, 5, 6, 7, 8, 9]] * 2)
    metrics = evaluate_instances(ranked, torch.tensor([4, 0]))
    assert (metrics.recall[1].estimate, metrics.recall[10].estimate) == (0.5, 1.0)
    assert metrics.map_at_100.estimate == pytest.approx((1 + 1 / 5) / 2)


# Evaluation


def images_of_run(run, split="test", most=None):
    data = TinyDataModule(**{"val_size": 32, "mean": [0.5], "std": [0.25], "left_out": run.config().data.left_out})
    return load_search_images(data, split, most)


def test_test_images_are_queries_on_all_training_images(runs):
    images, network = images_of_run(runs["whole"]), TrainedNetwork(runs["whole"])
    assert (len(images.queries), len(images.catalogue)) == (40, 160)
    result = evaluate_search(network, images, altered=None, baselines=False)
    (search,) = result.searches.values()
    similarity = network.embed(images.queries) @ network.embed(images.catalogue).T
    right = images.catalogue_labels[similarity.argmax(dim=1)] == images.query_labels
    assert search[NETWORK].overall.precision[1].estimate == pytest.approx(right.double().mean().item())
    assert result.accuracy.estimate == pytest.approx(runs["whole"].results()["test/accuracy"])
    assert result.instances == {}


def test_validation_images_are_queries_on_the_other_training_images():
    data = TinyDataModule(val_size=32, mean=[0.5], std=[0.25])
    images = load_search_images(data, "val", None)
    assert (len(images.queries), len(images.catalogue)) == (32, 128)
    both = {image.numpy().tobytes() for image in images.queries} & {
        image.numpy().tobytes() for image in images.catalogue
    }
    assert not both
    assert load_search_images(data, "test", 8).query_labels.bincount().tolist() == [2, 2, 2, 2]
    with pytest.raises(UserError, match="has no validation images"):
        load_search_images(TinyDataModule(val_size=0, mean=[0.5], std=[0.25]), "val", None)


def test_unseen_classes_are_evaluated_among_themselves_and_among_all(runs):
    run = runs["without"]
    images = images_of_run(run)
    assert images.unseen == (1, 3)
    result = evaluate_search(TrainedNetwork(run), images, altered=None, baselines=True)
    queries, catalogue, chance = (
        {name: value(metrics[NETWORK]) for name, metrics in result.searches.items()}
        for value in (lambda m: m.overall.queries, lambda m: m.catalogue, lambda m: m.chance)
    )
    among_themselves, among_all = "unseen classes, among themselves", "unseen classes, among all"
    assert queries == {"classes it knows": 20, among_themselves: 20, among_all: 20}
    assert catalogue == {"classes it knows": 80, among_themselves: 80, among_all: 160}
    assert chance == pytest.approx({"classes it knows": 0.5, among_themselves: 0.5, among_all: 0.25})
    for name in (among_themselves, among_all):
        assert set(result.searches[name][NETWORK].by_class) == {"middle", "bottom"}
        assert "pixels, cosine" in result.searches[name]
    # The logits stand for the known classes, whose labels are 0 and 2.
    assert result.accuracy.estimate == pytest.approx(run.results()["test_flip/accuracy"], abs=0.1)


def test_pixels_retrieve_noisy_copies_but_not_shifted_noise(runs):
    noise = torch.randint(256, (200, 1, 20, 20), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    labels = torch.arange(200) % 4
    images = SearchImages(noise, labels, noise[:4], labels[:4], ("a", "b", "c", "d"), ())
    network = TrainedNetwork(runs["whole"])
    result = evaluate_search(
        network, images, altered=AlteredCopies(50, ("translation", "shot_noise"), 1), baselines=True, seed=3
    )
    assert set(result.instances) == {"translation", "shot_noise", COMBINED}
    by_pixels = {name: metrics["pixels, cosine"].recall[1].estimate for name, metrics in result.instances.items()}
    # Added noise preserves most pixels of a noise image; translation preserves none.
    assert by_pixels["shot_noise"] == 1
    assert by_pixels["translation"] < 0.2
    again = evaluate_search(
        network, images, altered=AlteredCopies(50, ("translation", "shot_noise"), 1), baselines=True, seed=3
    )
    assert again == result


def test_the_untrained_network_depends_on_its_seed_alone_and_leaves_the_trained_one_unchanged(runs):
    network = TrainedNetwork(runs["whole"])
    images = images_of_run(runs["whole"]).queries
    before = network.embed(images)
    state = torch.random.get_rng_state()
    first, again, other = (network.untrained(seed).embed(images) for seed in (0, 0, 1))
    assert torch.random.get_rng_state().equal(state)
    assert first.equal(again)
    assert not first.allclose(other)
    assert not first.allclose(before)
    assert network.embed(images).equal(before)


# Command


@pytest.fixture
def evaluate(command, runs):
    folder = runs["whole"].path.parent
    return lambda *arguments: command(main, f"runs_dir={folder}", *arguments)


def test_the_command_stores_what_it_prints(evaluate, runs):
    run = runs["whole"]
    status, out, err = evaluate(f"run={run.path}", "format=json", "instances=20")
    assert (status, err) == (0, "")
    printed = json.loads(out)
    folder = run.search_evaluation / "test"
    stored = json.loads((folder / "measures.json").read_text())
    assert printed == stored | {"written_to": printed["written_to"]}
    assert {file.name for file in folder.iterdir()} == {"measures.json", "precision_by_class.png", "precision_at_k.png"}
    assert stored["weights_sha256"] == run.results()["weights_sha256"]
    precision = stored["searches"]["all classes"][NETWORK]["overall"]["precision"]["1"]["value"]
    assert stored["below_accuracy"]["precision_at_1"] == pytest.approx(stored["accuracy"]["value"] - precision)
    axes = plot_outcome(stored)["precision_at_k"].axes[0]
    drawn_curve = next(line for line in axes.lines if line.get_label() == NETWORK).get_ydata()
    assert drawn_curve[0] == pytest.approx(precision * 100)


def test_the_tables_show_each_search_task_and_the_accuracy(evaluate, runs, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    status, out, _ = evaluate(f"run={runs['without'].path}", "queries=20", "instances=10")
    assert status == 0
    for text in ("Unseen classes, among themselves", "pixels, cosine", "points", "one on top of the other", "bottom"):
        assert text in out


@pytest.mark.training
def test_several_runs_are_summarised_by_mean_and_standard_deviation(evaluate, runs, tmp_path):
    folder = runs["whole"].path.parent
    status, out, _ = evaluate(f"run={folder}", "format=json", "baselines=false", "instances=0", f"out={tmp_path}")
    assert status == 0
    printed = json.loads(out)
    assert json.loads((tmp_path / "summary.json").read_text()) == printed["summary"]
    values = [run["accuracy"]["value"] for run in printed["runs"]]
    assert printed["summary"]["accuracy"]["values"] == values
    assert printed["summary"]["accuracy"]["mean"] == pytest.approx(np.mean(values))
    assert printed["summary"]["accuracy"]["deviation"] == pytest.approx(np.std(values, ddof=1))
    # Only one of the runs has unseen classes.
    assert printed["summary"]["searches"]["unseen classes, among all"]["by_vectors"][NETWORK]["mAP@100"]["values"]
    status, out, _ = evaluate(f"run={folder}/*", "baselines=false", "instances=10")
    assert status == 0
    accuracy = printed["summary"]["accuracy"]
    expected = f"{accuracy['mean'] * 100:.2f} ± {accuracy['deviation'] * 100:.2f} %"
    assert f"Mean ± standard deviation over 2 runs, test set, accuracy {expected}:" in out
    assert summarise_runs(printed["runs"]) == printed["summary"]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("split=train", "split=train is not possible: choose test, val."),
        ("format=csv", "format=csv is not possible"),
        ("queries=0", "queries=0 is not possible: give 1 or more."),
        ("instances=-1", "instances=-1 is not possible: give 0 or more."),
        ("severity=6", "severity=6 is not possible"),
        ("altered_by=[rotation,hail]", "altered_by=hail is not possible: there are shot_noise"),
        ("querys=3", "queries"),
        ("run=nowhere", "nowhere does not exist"),
        ("run=[]", "run=[] names no run"),
        ("run=null", "run=null names no run"),
    ],
)
def test_invalid_options_are_reported_in_one_message(evaluate, argument, message):
    status, out, err = evaluate(argument)
    assert status in (1, 2)
    assert out == ""
    assert message in err
    assert "Traceback" not in err
