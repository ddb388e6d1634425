"""Content of TensorBoard for a fresh run, requested over HTTP."""

import io
import json
import re
import subprocess
import sys
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
from conftest import PATIENCE, REPOSITORY, TINY_DATA
from PIL import Image
from tiny_images import TinyDataModule

from fashion_cnn.analysis.tensorboard import dashboard_layout
from fashion_cnn.runs import Run
from fashion_cnn.train import train

pytestmark = pytest.mark.processes


class Board:
    """TensorBoard server of `logdir`."""

    def __init__(self, logdir):
        command = [sys.executable, "-m", "fashion_cnn.analysis.dashboard", "--logdir", str(logdir), "--port", "0"]
        command += ["--reload_multifile", "true", "--samples_per_plugin", "images=100"]
        # The server answers after it has read everything.
        command += ["--load_fast", "false", "--reload_task", "blocking", "--reload_interval", "0"]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY)
        for line in self.process.stderr:
            if match := re.search(r"http://localhost:\d+/", line):
                self.address = match[0]
                break
        else:
            pytest.fail(f"TensorBoard ended with {self.process.wait()}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.process.stderr.close()

    def get(self, path, body=None, **query):
        data = None if body is None else json.dumps(body).encode()
        url = f"{self.address}data/{path}{'?' * bool(query)}{urllib.parse.urlencode(query)}"
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"} if data else {})
        with urllib.request.urlopen(request, timeout=PATIENCE) as response:
            return response.read()

    def get_json(self, path, body=None, **query):
        return json.loads(self.get(path, body, **query))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Results of a run whose last epoch is not its best, beside a failed run."""
    from fashion_cnn.cli.main import compose

    folder = tmp_path_factory.mktemp("runs")
    overrides = [*TINY_DATA, "callbacks=default", f"runs_dir='{folder}'"]
    overrides += ["trainer.max_epochs=6", "callbacks.best.tie=null"]
    results = train(compose(overrides=overrides))
    assert results["best_epoch"] < results["epochs"], "both epochs are shown"
    with pytest.raises(Exception, match="learning rate"):
        train(compose(overrides=[*overrides, "optimizer=sgd", "optimizer.lr=1e12", "schedule=constant", "name=broken"]))
    return folder, results


@pytest.fixture(scope="module")
def board(trained):
    with Board(trained[0]) as board:
        yield board


@pytest.fixture(scope="module")
def run(trained):
    return Path(trained[1]["run"]).relative_to(trained[0]).as_posix()


def test_root_redirects_to_the_charts_of_the_gap(board):
    with urllib.request.urlopen(board.address) as response:
        assert urllib.parse.urlparse(response.url).fragment.startswith("custom_scalars")
        assert b"TensorBoard" in response.read()


def test_every_chart_of_the_layout_has_data(board, run):
    layout = board.get_json("plugin/custom_scalars/layout")
    charts = [chart for category in layout["category"] for chart in category["chart"]]
    assert len(charts) == sum(map(len, dashboard_layout().values()))
    for chart in charts:
        patterns = chart.get("multiline", {}).get("tag", [])
        patterns += [f"{name}$" for series in chart.get("margin", {}).get("series", []) for name in series.values()]
        assert patterns
        for pattern in patterns:
            response = board.get_json("plugin/custom_scalars/scalars", run=run, tag=pattern)
            assert response["regex_valid"]
            assert response["tag_to_events"], f"{chart['title']}: {pattern}"
            for events in response["tag_to_events"].values():
                assert len(events) == 6
    (losses,) = (chart for chart in charts if chart["title"].startswith("loss"))
    assert losses["multiline"]["tag"] == ["train/loss$", "val/loss$"], "both on one chart"


def test_scalars_are_logged_once_per_epoch(board, run, trained):
    tags = set(board.get_json("plugin/scalars/tags")[run])
    names = {"train/loss", "val/loss", "running/loss", "gap/loss", "learning_rate", "throughput/images_per_second"}
    assert names <= tags
    assert {f"gap_by_class/{name}" for name in TinyDataModule.class_names} <= tags
    events = board.get_json("plugin/scalars/scalars", run=run, tag="val/accuracy")
    assert max(value for _, _, value in events) == pytest.approx(trained[1]["val/accuracy"])


def test_plots_are_shown_for_the_best_and_the_last_epoch(board, run, trained):
    tags = set(board.get_json("plugin/images/tags")[run])
    both = {"confusion", "mistakes", "reliability", "gap_by_class"}
    assert tags == both | {"gap", "cartography", "label_errors"}
    for tag in tags:
        images = board.get_json("plugin/images/images", run=run, tag=tag, sample=0)
        steps = [image["step"] for image in images]
        assert steps == ([trained[1]["best_epoch"] * 8, 48] if tag in both else [trained[1]["best_epoch"] * 8])
        for image in images:
            picture = Image.open(io.BytesIO(board.get(f"plugin/images/individualImage?{image['query']}")))
            assert min(picture.size) > 200


def test_each_class_has_a_precision_recall_curve(board, run):
    tags = set(board.get_json("plugin/pr_curves/tags")[run])
    assert tags == {f"pr_curve/{name}" for name in TinyDataModule.class_names}
    curves = board.get_json("plugin/pr_curves/pr_curves", run=run, tag="pr_curve/top")[run]
    assert len(curves) == 2
    assert max(curves[-1]["precision"]) == 1


def test_histograms_are_written_every_few_epochs(board, run):
    tags = board.get_json("plugin/histograms/tags")[run]
    assert any(tag.startswith("weights/") for tag in tags)
    assert "activations/classifier" in tags
    for tag in tags:
        events = board.get_json("plugin/histograms/histograms", run=run, tag=tag)
        assert [step for _, step, _ in events] == [8, 40]


def test_projector_shows_the_validation_images(board, run):
    assert run in board.get_json("plugin/projector/runs")
    (embedding,) = board.get_json("plugin/projector/info", run=run)["embeddings"]
    name = embedding["tensorName"]
    assert len(board.get("plugin/projector/tensor", run=run, name=name)) == 32 * 16 * 4
    header, *rows = board.get("plugin/projector/metadata", run=run, name=name).decode().splitlines()
    assert header.split("\t") == ["label", "prediction", "loss", "right"]
    assert len(rows) == 32
    assert all(
        (label == prediction) == (right == "right") for label, prediction, _, right in (row.split("\t") for row in rows)
    )
    assert board.get("plugin/projector/sprite_image", run=run, name=name).startswith(b"\x89PNG")


def test_hparams_hold_only_the_finished_run_with_its_final_metrics(board, run, trained):
    names = ["val_accuracy", "val_loss", "gap_accuracy", "gap_loss"]
    experiment = board.get_json("plugin/hparams/experiment", {"experimentName": ""})
    assert {info["name"]["tag"] for info in experiment["metricInfos"]} == {f"final/{name}" for name in names}
    hparams = {info["name"] for info in experiment["hparamInfos"]}
    assert {"optimizer", "optimizer.lr", "model.network", "seed", "parameters", "data.val_size"} <= hparams
    request = {
        "experimentName": "",
        "allowedStatuses": ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"],
        "colParams": [{"metric": {"tag": f"final/{name}"}} for name in names],
        "startIndex": 0,
        "sliceSize": 10,
    }
    (group,) = board.get_json("plugin/hparams/session_groups", request)["sessionGroups"]
    (session,) = group["sessions"]
    assert session["status"] == "STATUS_SUCCESS"
    assert session["name"] == run
    values = {metric["name"]["tag"]: metric["value"] for metric in group["metricValues"]}
    assert values["final/val_accuracy"] == pytest.approx(trained[1]["val/accuracy"])
    assert values["final/gap_loss"] == pytest.approx(trained[1]["gap/loss"])


def test_text_shows_the_verdict(board, run, trained):
    (event,) = board.get_json("plugin/text/text", run=run, tag="verdict/text_summary")
    assert f"Verdict: {trained[1]['verdict']}" in event["text"]


def test_there_are_no_sub_runs(board, run):
    runs = board.get_json("runs")
    assert len(runs) == 2
    assert run in runs
    assert Run(Path(run)).path.parts[0] == "tiny"
