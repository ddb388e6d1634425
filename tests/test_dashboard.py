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
from omegaconf import OmegaConf
from PIL import Image
from tiny_images import TinyDataModule
from torch.utils.tensorboard import SummaryWriter

from fashion_cnn.analysis.tensorboard import TensorBoardWriter, dashboard_layout, hyperparameters
from fashion_cnn.cli.main import compose
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
        url = urllib.parse.urljoin(f"{self.address}data/", path) + "?" * bool(query) + urllib.parse.urlencode(query)
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"} if data else {})
        with urllib.request.urlopen(request, timeout=PATIENCE) as response:
            return response.read()

    def get_json(self, path, body=None, **query):
        return json.loads(self.get(path, body, **query))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Results of a run whose last epoch is not its best, beside a failed run."""
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


def test_root_redirects_to_the_time_series_with_overfitting_first(board, run):
    with urllib.request.urlopen(board.address) as response:
        address = urllib.parse.urlparse(response.url)
        assert b"TensorBoard" in response.read()
    assert not address.fragment, "a browser keeps the one of a link to another tab"
    query = dict(urllib.parse.parse_qsl(address.query))
    tags = board.get_json("plugin/timeseries/tags")["scalars"]["runTagInfo"]
    for card in json.loads(query["pinnedCards"]):
        assert card["plugin"] == "scalars"
        assert any(card["tag"] in names for names in tags.values())
    assert query["smoothing"] == "0"


@pytest.mark.browser
@pytest.mark.parametrize(("fragment", "tab"), [("", "Time Series"), ("#hparams", "HParams"), ("#scalars", "Scalars")])
def test_a_link_to_a_tab_opens_it(board, browser, fragment, tab):
    page = browser.new_page()
    page.goto(f"{board.address}{fragment}")
    page.wait_for_selector(f"[role=tab][aria-selected=true]:has-text('{tab}')", timeout=1000 * PATIENCE)
    page.close()


def write_run(directory, settings, seed, overrides=(), epochs=2):
    """Write the config and the TensorBoard events of a finished training."""
    run = Run(directory)
    run.create()
    config = {"name": "tiny", "seed": seed, "overrides": [*overrides, f"seed={seed}"], **settings}
    run.write_config(OmegaConf.create(config))
    for part, tags in (("", ["gap/accuracy"]), ("train", ["loss", "accuracy"]), ("val", ["loss", "accuracy"])):
        with SummaryWriter(str(directory / part)) as writer:
            for tag in tags:
                for epoch in range(epochs):
                    writer.add_scalar(tag, 0.1 * epoch, epoch + 1)
    writer = TensorBoardWriter(directory)
    writer.add_results(OmegaConf.create(config), None, {"best_epoch": 2, "val/accuracy": 0.1, "val/loss": 0.1})
    writer.close()


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """TensorBoard of a sweep over two remedies with two seeds each, beside a run of another experiment."""
    folder = tmp_path_factory.mktemp("several")
    for remedy, rate in (("none", 0.1), ("longer", 0.2)):
        for seed in (0, 1):
            settings = {"optimizer": {"lr": rate}, "data": {"val_size": 50}}
            overrides = [f"remedy={remedy}", "data.val_size=50"]
            write_run(folder / "sweep" / f"remedy-{remedy}_seed-{seed}", settings, seed, overrides)
    write_run(folder / "base" / "a", {"optimizer": {"lr": 0.1}, "data": {"val_size": 80}}, 0)
    with Board(folder) as board:
        yield board


def shown_colors(board, browser, **page_options):
    """Colours of the rows of the Time Series tab by name, in the order of the page."""
    page = browser.new_page(viewport={"width": 1400, "height": 900}, **page_options)
    page.goto(board.address)
    pinned = page.locator("metrics-pinned-view card-view")
    pinned.first.wait_for(timeout=1000 * PATIENCE)
    titles = ["".join(title.split()) for title in pinned.locator(".tag").all_inner_texts()]
    assert titles == ["gap/accuracy", "loss", "accuracy"]
    colors = {}
    for row in page.locator("runs-data-table tb-data-table-content-row").all():
        swatch = row.locator(".run-color-swatch")
        name = row.locator(".table-column-run").inner_text()
        colors[name] = swatch.evaluate("button => button.style.background")
    assert page.get_by_text("Card Width").count() == 0, "the settings are closed"
    page.close()
    return colors


@pytest.mark.browser
def test_train_and_validation_of_a_single_run_have_fixed_colours_and_marks(browser, run, trained):
    with Board(trained[0] / Path(run).parent) as board:
        colors = shown_colors(board, browser)
    parts = {name.rpartition("/")[2]: color for name, color in colors.items()}
    assert {"train", "val", "best"} < parts.keys()
    assert len(set(parts.values())) == len(parts)
    assert parts["train"] == "rgb(0, 114, 178)"
    assert parts["val"] == "rgb(213, 94, 0)"
    assert parts[run[-6:]] == "rgb(204, 121, 167)", "also if no run overfits"


@pytest.mark.browser
@pytest.mark.parametrize("page", ["light", "dark"])
def test_each_setting_of_several_runs_has_a_hue_that_its_seeds_share_and_no_marks(several, browser, page):
    colors = shown_colors(several, browser, color_scheme=page)
    names = [f"sweep/remedy-{remedy}_seed-{seed}" for remedy in ("longer", "none") for seed in (0, 1)] + ["base/a"]
    assert sorted(colors) == sorted(f"{name}{part}" for name in names for part in ("", "/train", "/val"))
    hues = {}
    for name in names:
        assert colors[name] == colors[f"{name}/val"]
        hues.setdefault(name.partition("_seed")[0], set()).add((colors[f"{name}/train"], colors[f"{name}/val"]))
    assert [len(pairs) for pairs in hues.values()] == [1, 1, 1], "the seeds of a setting share its colours"
    pairs = [channels(pair) for pairs in hues.values() for pair in pairs]
    assert len({color for pair in pairs for color in pair}) == 6
    sign = 1 if page == "light" else -1
    assert all(sign * (sum(train_color) - sum(val_color)) > 90 for train_color, val_color in pairs), (
        "train is nearer to the colour of the page"
    )


def channels(colors):
    return [tuple(map(int, re.findall(r"\d+", color))) for color in colors]


def test_marks_of_several_runs_are_filtered_out_at_first(several, run, trained):
    assert run_filter(several) == r"(?<!/best|/overfitting)$"
    with Board(trained[0] / Path(run).parent) as single:
        assert run_filter(single) is None


def run_filter(board):
    with urllib.request.urlopen(board.address) as response:
        return dict(urllib.parse.parse_qsl(urllib.parse.urlparse(response.url).query)).get("runFilter")


def test_runs_without_readable_settings_have_a_hue_each(tmp_path):
    for name in ("a", "b"):
        with SummaryWriter(str(tmp_path / name / "val")) as writer:
            writer.add_scalar("loss", 1.0, 1)
    (tmp_path / "b" / "config.yaml").write_text("seed: ${nowhere}\n[")
    with Board(tmp_path) as board:
        colors = board.get_json("run_colors")
    assert {"a/val", "b/val"} < colors.keys()
    assert colors["a/val"] != colors["b/val"]


def test_the_script_of_tensorboard_has_fixed_colours_and_narrow_columns(board):
    script = board.get("../index.js").decode()
    palette = json.loads(re.search(r'colorPalette:\{id:"default".*?colors:(\[.*?\])', script)[1])
    roles, runs, settings = palette[:4], palette[4:14], palette[14:]
    for colors in (runs, settings):
        assert len({color["lightHex"] for color in (*roles, *colors)}) == len(roles) + len(colors)
        assert len({color["darkHex"] for color in (*roles, *colors)}) == len(roles) + len(colors)
    names = re.search(r"tensorboardColorBlindAssist:(\[.*?\])", script)[1]
    assert json.loads(names) == [color["lightHex"] for color in runs]
    assert len(re.findall(r"=runColors\[\w\]\?\?\w\.get\(\w\)\?\?\w\.size;", script)) == 2
    assert re.search(r"=>withRunColors\((\w)\)\.map\(", script)
    assert 'flex-grow="2" width="7.5em"' in script
    assert re.search(r"name:shortRunName\(\w\),startTime:0", script)
    assert "info.differs).length;for" in script
    assert '"_smoothingWeight",{defaultValue:.6}' not in script


def test_hparams_shows_the_settings_that_differ_in_the_order_of_the_runs():
    columns = [{"name": name, "differs": name in "remedy Seed"} for name in ("data", "remedy", "Seed", "Model")]
    alike = [{**column, "differs": False} for column in columns]
    rows = [{"name": name, "hparams": {}, "sessions": [{"name": run}]} for name, run in (("7f", "a/2"), ("b4", "a/1"))]
    ordered, same, sorted_rows = called_in_another_process(
        ("_order_columns", {"hparamInfos": columns}, []),
        ("_order_columns", {"hparamInfos": alike}, []),
        ("_order_rows", {"sessionGroups": rows}),
    )
    assert [(column["name"], column["differs"]) for column in ordered["hparamInfos"]] == [
        ("Model", False),
        ("Seed", True),
        ("data", False),
        ("remedy", True),
    ]
    assert [column["name"] for column in same["hparamInfos"] if column["differs"]] == ["Model", "Seed"]
    assert [row["name"] for row in sorted_rows["sessionGroups"]] == ["b4", "7f"]


def test_hparams_compares_typed_settings_with_those_of_runs_that_did_not_type_them(several):
    experiment = several.get_json("plugin/hparams/experiment", {"experimentName": ""})
    shown = [column["name"] for column in experiment["hparamInfos"] if column["differs"]]
    assert shown[:2] == ["Learning rate", "Seed"]
    assert set(shown[2:]) == {"data.val_size", "remedy"}
    (interval,) = (c["domainInterval"] for c in experiment["hparamInfos"] if c["name"] == "data.val_size")
    assert interval == {"minValue": 50, "maxValue": 80}
    rows = several.get_json("plugin/hparams/session_groups", SESSION_GROUPS)["sessionGroups"]
    assert [(row["sessions"][0]["name"], row["hparams"]["data.val_size"]) for row in rows] == [
        ("base/a/best", 80),
        *((f"sweep/remedy-{remedy}_seed-{seed}/best", 50) for remedy in ("none", "longer") for seed in (0, 1)),
    ]


SESSION_GROUPS = {
    "experimentName": "",
    "allowedStatuses": ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"],
    "colParams": [],
    "startIndex": 0,
    "sliceSize": 10,
}


def called_in_another_process(*calls):
    """Results of functions of the dashboard, by name and arguments.

    The import of TensorBoard adds a handler to the logging, which closes pytest's standard error when Hydra configures
    the logging later.
    """
    code = (
        "import json, sys; from fashion_cnn.analysis import dashboard; "
        "print(json.dumps([getattr(dashboard, name)(*values) for name, *values in json.loads(sys.argv[1])]))"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, json.dumps(calls)]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True)
    return json.loads(answer.stdout)


def test_hyperparameters_write_removed_parts_and_classes_like_other_settings():
    settings = hyperparameters(compose(overrides=[*TINY_DATA, "callbacks=default", "seed=3", "~callbacks.ema"]))
    assert settings["callbacks.ema"] == "null"
    assert settings["Seed"] == "3"
    assert settings["data"] == "TinyDataModule"
    assert "data._target_" not in settings


def test_the_time_series_tab_lists_only_runs_with_curves(board, run, trained):
    writer = TensorBoardWriter(trained[0] / "comparison")
    writer.add_text("comparison", "text", 0)
    writer.close()
    bands = TensorBoardWriter(trained[0] / "comparison" / "bands" / "seeds")
    bands.add_band("val/accuracy", [1, 2], [0.7, 0.8], [0.1, 0.1])
    bands.close()
    with Board(trained[0]) as other:
        assert {"comparison", "comparison/bands/seeds"} <= set(other.get_json("runs")), "the other tabs show them"
        shown = json.loads(other.get("../experiment/defaultExperimentId/data/runs"))
    assert run in shown
    assert not {"comparison", "comparison/bands/seeds"} & set(shown)


def test_margin_charts_have_an_estimate_and_both_bounds(board, run):
    layout = board.get_json("plugin/custom_scalars/layout")
    charts = [chart for category in layout["category"] for chart in category["chart"]]
    assert len(charts) == sum(map(len, dashboard_layout().values()))
    for chart in charts:
        (series,) = chart["margin"]["series"]
        for name in board.get_json("runs"):
            response = board.get_json("plugin/custom_scalars/scalars", run=name, tag=f"({')|('.join(series.values())})")
            if tags := response["tag_to_events"]:
                assert tags.keys() == set(series.values()), "TensorBoard would warn of missing tags"
                steps = [[step for _, step, _ in events] for events in tags.values()]
                assert steps == [steps[0]] * 3
        events = board.get_json("plugin/custom_scalars/scalars", run=run, tag=series["value"])["tag_to_events"]
        assert len(events[series["value"]]) == 6


def test_train_and_validation_are_two_runs_over_the_epochs(board, run, trained):
    tags = board.get_json("plugin/scalars/tags")
    assert {"loss", "accuracy", "calibration_error"} == tags[f"{run}/train"].keys() == tags[f"{run}/val"].keys()
    assert {"running/loss", "gap/loss", "learning_rate", "throughput/images_per_second"} <= tags[run].keys()
    assert {f"gap_by_class/{name}" for name in TinyDataModule.class_names} <= tags[run].keys()
    assert not {"loss", "accuracy", "epoch"} & tags[run].keys()
    events = board.get_json("plugin/scalars/scalars", run=f"{run}/val", tag="accuracy")
    assert [step for _, step, _ in events] == [1, 2, 3, 4, 5, 6]
    assert max(value for _, _, value in events) == pytest.approx(trained[1]["val/accuracy"])


def test_the_best_epoch_is_a_point_on_the_curves(board, run, trained):
    for tag, name in (("accuracy", "val/accuracy"), ("loss", "val/loss"), ("gap/accuracy", "gap/accuracy")):
        (event,) = board.get_json("plugin/scalars/scalars", run=f"{run}/best", tag=tag)
        assert event[1] == trained[1]["best_epoch"]
        assert event[2] == pytest.approx(trained[1][name])


def test_plots_are_shown_for_the_best_and_the_last_epoch(board, run, trained):
    tags = set(board.get_json("plugin/images/tags")[run])
    both = {"confusion", "mistakes", "reliability", "gap_by_class"}
    assert tags == both | {"gap", "cartography", "label_errors"}
    for tag in tags:
        images = board.get_json("plugin/images/images", run=run, tag=tag, sample=0)
        steps = [image["step"] for image in images]
        assert steps == ([trained[1]["best_epoch"], 6] if tag in both else [trained[1]["best_epoch"]])
        for image in images:
            picture = Image.open(io.BytesIO(board.get(f"plugin/images/individualImage?{image['query']}")))
            assert min(picture.size) > 100


def test_each_class_has_a_precision_recall_curve(board, run):
    tags = set(board.get_json("plugin/pr_curves/tags")[run])
    assert tags == {f"pr_curve/{name}" for name in TinyDataModule.class_names}
    curves = board.get_json("plugin/pr_curves/pr_curves", run=run, tag="pr_curve/top")[run]
    assert len(curves) == 2
    assert max(curves[-1]["precision"]) == 1


def test_histograms_are_written_every_few_epochs(board, run):
    tags = board.get_json("plugin/histograms/tags")[run]
    assert any(tag.startswith("weights/") for tag in tags)
    assert "layer_activations/classifier" in tags
    for tag in tags:
        events = board.get_json("plugin/histograms/histograms", run=run, tag=tag)
        assert [step for _, step, _ in events] == [1, 5]


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
    tags = {"accuracy": "val/accuracy", "gap/accuracy": "gap/accuracy", "loss": "val/loss", "gap/loss": "gap/loss"}
    experiment = board.get_json("plugin/hparams/experiment", {"experimentName": ""})
    assert {info["name"]["tag"] for info in experiment["metricInfos"]} == tags.keys()
    hparams = [info["name"] for info in experiment["hparamInfos"]]
    assert hparams[:3] == ["Model", "Learning rate", "Seed"]
    assert {"data.val_size", "trainer.max_epochs"} <= set(hparams[3:]), "what was typed"
    assert "runs_dir" not in hparams
    request = {**SESSION_GROUPS, "colParams": [{"metric": info["name"]} for info in experiment["metricInfos"]]}
    (group,) = board.get_json("plugin/hparams/session_groups", request)["sessionGroups"]
    (session,) = group["sessions"]
    assert session["status"] == "STATUS_SUCCESS"
    assert session["name"] == f"{run}/best"
    assert group["name"] == f"{run[-6:]} tiny", "the tab shows its first 14 characters"
    assert group["hparams"]["Model"] == "tiny"
    assert group["hparams"]["Seed"] == "0"
    values = {metric["name"]["tag"]: metric["value"] for metric in group["metricValues"]}
    assert values == {tag: pytest.approx(trained[1][name]) for tag, name in tags.items()}


def test_text_shows_the_verdict(board, run, trained):
    (event,) = board.get_json("plugin/text/text", run=run, tag="Verdict/text_summary")
    assert f"Verdict: {trained[1]['verdict']}" in event["text"]
    tags = {tag for names in board.get_json("plugin/text/tags").values() for tag in names}
    assert "config/text_summary" in tags
    assert min(tags) == "Verdict/text_summary", "TensorBoard sorts them by their characters"


def test_runs_are_those_of_the_run_directories(board, run):
    names = set(board.get_json("runs"))
    (broken,) = {name for name in names if name.startswith("broken/") and name.count("/") == 1}
    expected = {f"{run}/best", *(f"{name}{part}" for name in (run, broken) for part in ("", "/train", "/val"))}
    assert expected <= names <= expected | {f"{run}/overfitting"}
    assert Run(Path(run)).path.parts[0] == "tiny"
