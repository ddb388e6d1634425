"""Loggers that send a run to W&B (offline) and to MLflow (a local database): the figures, the verdict, resuming."""

import csv
import importlib.util
import json
import struct
import time
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import TINY_DATA

from fashion_cnn.errors import UserError, install_command, require
from fashion_cnn.inference.network import read_checkpoint
from fashion_cnn.runs import Run, find_runs
from fashion_cnn.runs.trust import check_classes
from fashion_cnn.train import main, train
from fashion_cnn.training.checkpoints import AtomicCheckpointIO
from fashion_cnn.training.loggers import Comet, MLflow, WeightsAndBiases, _read_trackers

# The analysis with its plots, on two epochs.
ANALYSIS = ["callbacks=default", "callbacks.dynamics=null", "callbacks.histograms=null", "trainer.max_epochs=2"]


def installed(package):
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


# Warnings of the packages themselves.
pytestmark = [pytest.mark.filterwarnings("default")]


def figures(run):
    """The figures of metrics.csv, by the number of the epoch from 1."""
    with run.metrics_file.open() as file:
        rows = [{name: float(cell) for name, cell in row.items() if cell} for row in csv.DictReader(file)]
    return {int(row["epoch"]) + 1: {name: row[name] for name in row if name not in ("epoch", "step")} for row in rows}


def wandb_records(run):
    """The records of all offline files of a run, oldest file first, and the ids of their runs.

    The format is that of LevelDB's log: blocks of 32 KiB with records of crc (4 bytes), length (2) and type (1), after
    a header of 7 bytes.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    for file in sorted(Path("wandb").glob("offline-run-*/*.wandb")):
        content, position, parts = file.read_bytes(), 7, b""
        while position + 7 <= len(content):
            if (left := 32768 - position % 32768) < 7:
                position += left
                continue
            length, kind = struct.unpack("<HB", content[position + 4 : position + 7])
            parts += content[position + 7 : position + 7 + length]
            position += 7 + length
            if kind in (1, 4):
                yield Record.FromString(parts)
                parts = b""


def items_of(items):
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


class WandbRun:
    """The contents of W&B's offline files of a run."""

    file = "wandb"

    def __init__(self, run):
        # W&B's own process writes the last records after the training has ended.
        deadline = time.monotonic() + 120
        files = len(list(Path("wandb").glob("offline-run-*")))
        while True:
            self.records = list(wandb_records(run))
            if sum(record.HasField("exit") for record in self.records) == files:
                break
            assert time.monotonic() < deadline
            time.sleep(0.2)
        self.ids = {record.run.run_id for record in self.records if record.HasField("run")}

    def rows(self):
        """Lists of the values of each metric, by epoch."""
        rows = {}
        for record in self.records:
            if record.HasField("history"):
                items = items_of(record.history.item)
                row = rows.setdefault(int(items["_step"]), {})
                for name, value in items.items():
                    # Beside the metrics there are times, and sizes of the figures.
                    if isinstance(value, int | float) and not name.startswith(("_", "figures/")):
                        row.setdefault(name, []).append(value)
        return rows

    def settings(self):
        updates = [update for r in self.records for update in (*r.run.config.update, *r.config.update)]
        return items_of(updates)

    def final(self):
        return {name: value for r in self.records for name, value in items_of(r.summary.update).items()}

    def files(self):
        artifacts = (record.request.log_artifact.artifact for record in self.records)
        saved = (record.artifact for record in self.records)
        return {entry.path for artifact in (*artifacts, *saved) for entry in artifact.manifest.contents}


class MlflowRun:
    """The contents of MLflow's database of a run."""

    file = "mlflow"

    def __init__(self, run):
        from mlflow.tracking import MlflowClient

        self.client = MlflowClient(f"sqlite:///{Path('mlflow.db').absolute()}")
        experiment = self.client.get_experiment_by_name("fashion_cnn")
        self.ids = {found.info.run_id for found in self.client.search_runs([experiment.experiment_id])}
        (self.id,) = self.ids
        self.data = self.client.get_run(self.id).data
        self.status = self.client.get_run(self.id).info.status

    def rows(self):
        rows = {}
        for name in self.data.metrics:
            if not name.startswith("final/"):
                for point in self.client.get_metric_history(self.id, name):
                    rows.setdefault(point.step, {}).setdefault(name, []).append(point.value)
        return rows

    def settings(self):
        return self.data.params

    def final(self):
        return self.data.metrics | self.data.tags

    def files(self):
        folders = (None, "figures")
        return {file.path for folder in folders for file in self.client.list_artifacts(self.id, folder)}


class CometRun:
    """The contents of Comet's offline files of a run."""

    file = "comet"

    def __init__(self, run):
        self.messages, self.ids = [], set()
        for file in sorted(Path(".cometml-runs").glob("*.zip"), key=lambda file: file.stat().st_mtime):
            with zipfile.ZipFile(file) as archive:
                self.ids.add(json.loads(archive.read("experiment.json"))["offline_id"])
                lines = archive.read("messages.json").decode().splitlines()
            self.messages += [(message["type"], message["payload"]) for message in map(json.loads, lines)]
        # Every file of one experiment but the first continues it.
        assert all(file.name.startswith(next(iter(self.ids))) for file in Path(".cometml-runs").iterdir())

    def of_type(self, kind):
        return [payload for found, payload in self.messages if found == kind]

    def rows(self):
        rows = {}
        for payload in self.of_type("metric_msg"):
            metric = payload["metric"]
            # Comet adds the duration of its process.
            if metric["metricName"] != "process duration" and not metric["metricName"].startswith("final/"):
                row = rows.setdefault(metric["step"], {})
                row.setdefault(metric["metricName"], []).append(metric["metricValue"])
        return rows

    def settings(self):
        return {p["param"]["paramName"]: p["param"]["paramValue"] for p in self.of_type("parameter_msg")}

    def final(self):
        metrics = (payload["metric"] for payload in self.of_type("metric_msg"))
        others = {payload["key"]: payload["value"] for payload in self.of_type("log_other")}
        return others | {metric["metricName"]: metric["metricValue"] for metric in metrics}

    def files(self):
        return {
            payload["additional_params"]["fileName"]
            for _, payload in self.messages
            if "fileName" in (payload.get("additional_params") or {})
        }


PACKAGES = {"wandb": "wandb", "mlflow": "mlflow", "comet": "comet_ml"}
TRACKERS = [
    pytest.param(
        tracker,
        marks=pytest.mark.skipif(
            not installed(PACKAGES[tracker.file]), reason=f"{install_command(tracker.file)} installs {tracker.file}"
        ),
        id=tracker.file,
    )
    for tracker in (WandbRun, MlflowRun, CometRun)
]


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """Work in the folder of the test, without a network."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("COMET_START_ONLINE", "0")
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)


def check_rows(tracker, run):
    """Each figure of metrics.csv was sent once, and nothing else."""
    sent = {
        epoch: {name: values for name, values in row.items() if name != "epoch"}
        for epoch, row in tracker.rows().items()
    }
    assert sent == {epoch: {name: [value] for name, value in row.items()} for epoch, row in figures(run).items()}


@pytest.mark.slow
@pytest.mark.parametrize("tracker", TRACKERS)
def test_a_tracker_has_the_figures_the_settings_the_plots_and_the_verdict(tiny, tracker):
    config = tiny(*ANALYSIS, f"logger={tracker.file}")
    run = Run(Path(train(config, quiet=True)["run"]))
    stored, results = tracker(run), run.results()
    check_rows(stored, run)
    assert float(stored.settings()["optimizer.lr"]) == config.optimizer.lr
    final = stored.final()
    assert (final["verdict"], final["final/test/accuracy"]) == (results["verdict"], results["test/accuracy"])
    plots = {f"figures/{file.name}" for file in run.plots.glob("*.png")}
    assert plots
    assert stored.files() >= plots | {"report.md", "results.json"}
    assert getattr(stored, "status", "FINISHED") == "FINISHED"


@pytest.mark.slow
@pytest.mark.parametrize("tracker", TRACKERS)
@pytest.mark.parametrize("moment", ["before the checkpoint", "after it"])
def test_a_resumed_run_is_continued_and_identical(tiny, tmp_path, monkeypatch, tracker, moment):
    """Killed in the second of three epochs: either that epoch is sent but trained again, or it is not sent at all."""
    plain = Run(Path(train(tiny(), quiet=True)["run"]))
    config = tiny(f"logger={tracker.file}")
    loggers_class = {"wandb": WeightsAndBiases, "mlflow": MLflow, "comet": Comet}[tracker.file]

    with monkeypatch.context() as patch:
        if moment == "before the checkpoint":
            patch.setattr(AtomicCheckpointIO, "save_checkpoint", killed_at_epoch(1, AtomicCheckpointIO.save_checkpoint))
        else:
            patch.setattr(loggers_class, "_send", killed_at_epoch(1, loggers_class._send))
        with pytest.raises(RuntimeError, match="killed"):
            train(config, quiet=True)
    (run,) = (run for run in find_runs(str(tmp_path / "runs")) if run.path != plain.path)
    assert getattr(tracker(run), "status", "FAILED") == "FAILED"
    train(tiny(f"resume='{run.path}'"), quiet=True)
    stored = tracker(run)
    assert len(stored.ids) == 1
    check_rows(stored, run)
    assert run.metrics_file.read_text() == plain.metrics_file.read_text()
    weights, others = (read_checkpoint(each.weights)["state_dict"] for each in (run, plain))
    assert all(torch.equal(weights[name], others[name]) for name in others)


def killed_at_epoch(number, function):
    """A function that fails in the epoch of an index, from 0."""

    def call(self, given, *more, **settings):
        if given["epoch"] == number:
            raise RuntimeError("killed")
        return function(self, given, *more, **settings)

    return call


@pytest.mark.parametrize("name", ["wandb", "mlflow", "comet"])
def test_a_missing_package_is_reported_with_the_install_command(command, monkeypatch, tmp_path, name):
    find, package = importlib.util.find_spec, PACKAGES[name]
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda found, *rest: None if found == package else find(found, *rest)
    )
    (tmp_path / package).mkdir()
    status, _, err = command(main, *TINY_DATA, f"logger={name}", f"runs_dir={tmp_path / 'runs'}")
    assert status == 1
    assert err == f"error: This needs {package}: {install_command(name)}\n"
    assert not (tmp_path / "runs").exists()


def test_a_folder_of_the_name_of_a_package_is_no_package(monkeypatch, tmp_path):
    (tmp_path / "no_such_package").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match="This needs no_such_package"):
        require("wandb", "no_such_package")


@pytest.mark.parametrize(
    ("target", "option"),
    [
        ("WeightsAndBiases", "entity=someone"),
        ("MLflow", "tracking_uri=https://elsewhere.example"),
        ("MLflow", "artifact_location=/elsewhere"),
        ("Comet", "workspace=someone"),
        ("Comet", "offline_directory=/elsewhere"),
    ],
)
def test_a_server_or_an_account_that_only_a_run_names_is_refused(target, option):
    name, value = option.split("=")
    config = {"logger": {"x": {"_target_": f"fashion_cnn.training.loggers.{target}", name: value}}}
    with pytest.raises(UserError, match=rf"type it, too: \+\+logger.x.{name}="):
        check_classes(config, Path("config.yaml"))
    config["logger"]["x"][name] = None
    check_classes(config, Path("config.yaml"))


@pytest.mark.skipif(not installed("comet_ml"), reason="comet_ml is not installed")
def test_comet_without_an_api_key_is_refused_before_the_training(command, monkeypatch, tmp_path):
    monkeypatch.delenv("COMET_START_ONLINE")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("COMET_API_KEY", "")
    status, _, err = command(main, *TINY_DATA, "logger=comet", f"runs_dir={tmp_path / 'runs'}")
    assert status == 1
    assert "logger.comet cannot start: there is no API key." in err


def test_damaged_ids_of_a_tracker_start_a_new_run_there(tmp_path):
    run = Run(tmp_path)
    texts = ("{", "[]", '{"wandb": {"id": "../x", "epochs": 1}}', '{"wandb": 1}', '{"wandb": {"id": 3}}')
    for text in (*texts, "[" * 60_000, '{"wandb": {"id": "a1", "epochs": Infinity}}'):
        run.trackers_file.write_text(text)
        assert _read_trackers(run) == {}
    run.trackers_file.write_text('{"wandb": {"id": "a1", "epochs": 2}}')
    assert _read_trackers(run) == {"wandb": {"id": "a1", "epochs": 2}}
