"""Sweeps: independent jobs, their comparison, failed jobs, and resuming."""

import json
import os
import re
import shutil
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import TINY_DATA
from hydra import initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from joblib.externals.loky import get_reusable_executor
from lightning.pytorch import Callback
from omegaconf import OmegaConf

from fashion_cnn import train as train_command
from fashion_cnn.cli import main as command_line
from fashion_cnn.cli.main import CONFIG_DIR, compose
from fashion_cnn.errors import UserError
from fashion_cnn.models import ResNet
from fashion_cnn.runs import Run
from fashion_cnn.runs.overrides import quote_override
from fashion_cnn.sweeps.jobs import job_name, list_jobs, run_job
from fashion_cnn.train import main
from fashion_cnn.training import build, session

SWEPT = ["model.network.stem=[8],[16]", "seed=0,1"]
ARGUMENTS = ["-m", *(part for part in TINY_DATA if "stem" not in part and "epochs" not in part), "trainer.max_epochs=1"]


def test_job_names_have_no_special_characters():
    assert job_name(["optimizer.lr=0.1", "seed=1"]) == "lr-0.1_seed-1"
    assert job_name(["data.root='a b/c'", "~callbacks.ema"]) == "root-a-b-c_ema"
    assert job_name(["model.network.stem=[16]", "x=-1"]) == "stem-16_x--1"
    assert job_name(["model=tiny", "seed=1"], shared=["model"]) == "seed-1"
    assert job_name([]) == "job"


def test_names_of_jobs_with_many_overrides_are_short_and_unique():
    names = [job_name([*(f"optimizer.lr{number}=0.12345" for number in range(30)), f"seed={seed}"]) for seed in (0, 1)]
    assert max(map(len, names)) == 200
    assert names[0] != names[1]
    assert names[0].endswith("lr29-0.12345_seed-0")
    assert len({name[:8] for name in names}) == 2


def test_jobs_are_all_combinations_and_overrides_replace_the_sweep_file():
    jobs, shared = list_jobs(["model=tiny", "seed=range(2)", "lr=1,2"], {"seed": "5,6,7", "x": "a,b"})
    assert [job.name for job in jobs][:3] == ["seed-0_x-a_lr-1", "seed-0_x-a_lr-2", "seed-0_x-b_lr-1"]
    assert len(jobs) == 8
    assert shared == {"model"}
    with pytest.raises(ValueError, match="not a list"):
        list_jobs(["lr=interval(0,1)"], {})


def test_glob_lists_the_configs_of_a_group():
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        jobs, _ = list_jobs(["schedule=glob(*, exclude=c*)"], {})
    assert [job.overrides for job in jobs] == [("schedule=linear",), ("schedule=onecycle",)]
    assert job_name(jobs[0].overrides) == "schedule-linear"


def find_sweep(folder):
    (file,) = folder.rglob("multirun.yaml")
    return file.parent


def job_metrics(sweep):
    """Return the results of each finished job that do not depend on the time."""
    results = {file.parent.name: json.loads(file.read_text()) for file in sweep.glob("*/results.json")}
    return {job: {k: v for k, v in outcome.items() if "/" in k} for job, outcome in results.items()}


class Failing(Callback):
    """One job of the sweep that fails as long as the file `marker` exists."""

    def __init__(self, marker):
        self.marker = Path(marker)

    def setup(self, trainer, pl_module, stage):
        (network,) = (part for part in pl_module.network.modules() if isinstance(part, ResNet))
        if (network.trunk[0][0].out_channels, trainer.datamodule.seed) == (8, 1) and self.marker.exists():
            raise MemoryError("no room")


@pytest.fixture
def joblib_workers():
    """End the processes of joblib, which wait for further work, after the test."""
    yield
    get_reusable_executor().shutdown(wait=True, kill_workers=True)


def run_with_a_failure_then_resume(command, folder, launcher):
    """Return the metrics of the finished jobs before and after the failed one was run again."""
    arguments = [
        *ARGUMENTS,
        *SWEPT,
        "callbacks=essential",
        "+callbacks.failing._target_=test_sweeps.Failing",
        f"+callbacks.failing.marker={folder / 'failing'}",
        f"hydra/launcher={launcher}",
    ]
    folder.mkdir()
    (folder / "failing").touch()
    status, out, _ = command(main, *arguments, f"runs_dir={folder}")
    sweep = find_sweep(folder)
    assert status == 1
    assert "3 of 4 jobs finished" in out
    assert re.search(r"stem-8_seed-1: failed \(MemoryError: no room\)", out)
    before = job_metrics(sweep)
    assert len(before) == 3
    assert (sweep / "comparison" / "comparison.csv").read_text().count("\n") == 3
    assert not any(sign in job for job in before for sign in "=,/[ ")

    (folder / "failing").unlink()
    started = {job: (sweep / job / "results.json").stat().st_mtime_ns for job in before}
    status, out, _ = command(main, *arguments, f"resume={sweep}", f"runs_dir={folder}")
    assert status == 0
    assert "4 of 4 jobs finished" in out
    assert {job: (sweep / job / "results.json").stat().st_mtime_ns for job in before} == started, "one was trained"
    assert find_sweep(folder) == sweep, "no second sweep"
    return before, job_metrics(sweep)


@pytest.mark.processes
def test_only_failed_jobs_are_run_again_sequentially_or_in_parallel(command, joblib_workers, tmp_path):
    serial = run_with_a_failure_then_resume(command, tmp_path / "serial", "basic")
    parallel = run_with_a_failure_then_resume(command, tmp_path / "parallel", "joblib")
    for one_by_one, side_by_side in zip(serial, parallel, strict=True):
        assert one_by_one.keys() == side_by_side.keys()
        for job, expected in one_by_one.items():
            # On one thread in place of two, sums are added up in another order.
            assert side_by_side[job]["val/loss"] == pytest.approx(expected["val/loss"], rel=0.02), job


@pytest.mark.parametrize(
    "content", ["", "a: [", "hydra: {}", "hydra: {overrides: {task: [{a: 1}], hydra: []}}", "hydra: &a [*a]", "\udcff"]
)
def test_a_damaged_command_of_a_sweep_is_reported_in_one_message(command, tmp_path, content):
    (tmp_path / "multirun.yaml").write_text(content, errors="surrogateescape")
    status, _, err = command(main, f"resume={tmp_path}")
    assert status == 1
    assert err.startswith(f"error: {tmp_path / 'multirun.yaml'} is damaged (")
    assert "start a new sweep" in err


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        (f"seed={'[' * 1000}{']' * 1000}", "maximum recursion depth"),
        (f"seed={','.join(map(str, range(20_000)))}", r"its overrides have 108,\d+ characters"),
    ],
    ids=["nested", "long"],
)
def test_a_command_of_a_sweep_that_cannot_be_parsed_in_a_second_is_damaged(command, tmp_path, override, reason):
    stored = {"overrides": {"hydra": [], "task": ["model=tiny", override]}, "sweeper": {"params": None}}
    stored |= {"runtime": {"config_sources": []}, "job": {"config_name": "train"}}
    OmegaConf.save({"hydra": stored}, tmp_path / "multirun.yaml")
    status, _, err = command(main, f"resume={tmp_path}")
    assert status == 1
    assert re.search(rf"multirun.yaml is damaged \({reason}", err)


@pytest.mark.training
def test_finished_jobs_leave_no_tensors_in_memory(command, tmp_path, monkeypatch):
    made, left = weakref.WeakSet(), []

    def noted(make):
        def make_and_note(*given, **named):
            left.append(len(made))
            part = make(*given, **named)
            made.add(part)
            return part

        return make_and_note

    for name in ("data", "module", "trainer"):
        monkeypatch.setattr(build, name, noted(getattr(build, name)))
    assert command(main, *ARGUMENTS, "seed=range(4)", f"runs_dir={tmp_path}")[0] == 0
    # Counted before the data, the module and the trainer of each job are built.
    assert left == [0, 1, 2] * 4


@pytest.mark.training
def test_a_job_has_the_results_of_a_single_training(command, tmp_path):
    alone = [part for part in ARGUMENTS if part != "-m"]
    assert command(main, *ARGUMENTS, "model.network.stem=[8]", "seed=3,4", f"runs_dir={tmp_path}")[0] == 0
    assert command(main, *alone, "model.network.stem=[8]", "seed=4", f"runs_dir={tmp_path / 'alone'}")[0] == 0
    (single,) = (tmp_path / "alone").rglob("results.json")
    expected = {k: v for k, v in json.loads(single.read_text()).items() if "/" in k}
    assert job_metrics(find_sweep(tmp_path / "sweep"))["seed-4"] == expected


@pytest.mark.training
def test_a_resumed_sweep_repeats_its_own_command(command, tmp_path):
    assert command(main, *ARGUMENTS, "seed=0,1", f"runs_dir={tmp_path}")[0] == 0
    sweep = find_sweep(tmp_path)
    status, out, _ = command(main, f"resume={sweep}")
    assert status == 0, "alone it knows its command"
    assert "2 of 2 jobs finished" in out
    assert "seed-0: already finished" in out
    assert "seed-1: already finished" in out
    for further in (["seed=2"], ["seed=0"], []):
        status, out, _ = command(main, f"resume={sweep}", *further)
        assert status == 0
        assert "3 of 3 jobs finished" in out, "what it was, and what is added"
    assert (sweep / "comparison" / "comparison.md").read_text().count("| 3 |") == 1
    status, _, err = command(main, f"resume={sweep}", "trainer.max_epochs=2")
    assert status == 2
    assert "trainer.max_epochs: 1 there, 2 here" in err
    status, _, err = command(main, *ARGUMENTS, "seed=0,1", "optimizer.lr=1", f"resume={sweep}")
    assert status == 2
    assert "optimizer.lr: default there, 1 here" in err
    status, _, err = command(main, "-m", "seed=0,1", f"resume={tmp_path / 'nowhere'}")
    assert status == 2
    assert "is no sweep: give the directory of a sweep" in err
    (sweep / "seed-3").symlink_to(tmp_path / "elsewhere")
    status, _, err = command(main, f"resume={sweep}")
    assert status == 1
    assert f"{sweep / 'seed-3'} is a link that leads out of {sweep}" in err


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("model=tiny,smal", "Did you mean small?"),
        ("optimizer.lr=interval(0,1)", "is not a list of values"),
        ("optimizer.lr=0.02,abc", "optimizer.lr=abc is not possible: it takes a number"),
    ],
)
def test_an_invalid_sweep_writes_no_files(command, tmp_path, argument, message):
    status, _, err = command(main, *ARGUMENTS, argument, f"runs_dir={tmp_path}")
    assert status == 2
    assert message in err
    assert not list(tmp_path.rglob("*.yaml"))


@pytest.mark.training
def test_user_errors_of_jobs_are_reported_in_one_message(command, tmp_path):
    status, out, err = command(main, *ARGUMENTS, "+model.network.foo=3", "seed=0,1", f"runs_dir={tmp_path}")
    assert status == 1
    assert err.count("unknown option 'model.network.foo'") == 2
    assert out.count("failed (unknown option 'model.network.foo'") == 2
    assert "Traceback" not in out + err


@pytest.mark.training
def test_a_sweep_file_needs_no_multirun_flag(command, tmp_path):
    tiny = [part for part in ARGUMENTS if part != "-m"]
    status, out, _ = command(main, *tiny, "sweep=seeds", "seed=0,1", f"runs_dir={tmp_path}")
    assert status == 0
    assert "2 of 2 jobs finished" in out
    (sweep,) = (tmp_path / "seeds").iterdir()
    assert {job.name for job in sweep.iterdir() if job.is_dir()} == {"seed-0", "seed-1", "comparison"}
    overrides = OmegaConf.load(sweep / "seed-1" / "config.yaml").overrides
    assert sorted(overrides) == sorted([*tiny, "test=false", "seed=1", f"runs_dir={tmp_path}"])
    assert "test=false" in (sweep / "seed-1" / "model_card.md").read_text()
    assert command(main, f"resume={sweep}")[0] == 0


def test_stored_overrides_of_a_job_repeat_its_training():
    job = compose(overrides=["sweep=held_out", "model=tiny", "data.left_out=[0,6]", "seed=1"])
    assert [*job.overrides] == [
        *("callbacks=essential", "trainer.max_epochs=10", "test=false"),
        *("model=tiny", "data.left_out=[0,6]", "seed=1"),
    ]
    assert compose(overrides=[*job.overrides]) == job
    assert "trainer.max_epochs=10" not in compose(overrides=["sweep=held_out", "trainer.max_epochs=3"]).overrides


def test_a_users_own_sweep_file_expands_to_the_overrides_that_hydra_applies(tmp_path, monkeypatch):
    shutil.copytree(CONFIG_DIR, tmp_path / "conf")
    (tmp_path / "conf" / "sweep" / "own.yaml").write_text(
        "# @package _global_\ntrainer: {inference_mode: false}\ndata: {root: a b}\nmodel: {network: {widths: [8, 9]}}\n"
    )
    monkeypatch.setattr(command_line, "CONFIG_DIR", tmp_path / "conf")
    job = compose(overrides=["sweep=own", "model=tiny"])
    assert job.trainer.inference_mode is False, "which conf/trainer does not list"
    assert compose(overrides=[quote_override(override) for override in job.overrides]) == job


@pytest.mark.training
def test_jobs_start_from_the_newest_run_at_the_start_of_find_sweep(command, tmp_path):
    tiny = [part for part in ARGUMENTS if part != "-m"]
    assert command(main, *tiny, f"runs_dir={tmp_path}")[0] == 0
    (first,) = (file.parent for file in tmp_path.rglob("results.json"))
    warm = [*ARGUMENTS, "callbacks=essential", "init_from=latest", f"runs_dir={tmp_path}"]
    assert command(main, *warm, "seed=0,1")[0] == 0
    sweep = find_sweep(tmp_path)
    assert command(main, *warm, "seed=0,1,2", f"resume={sweep}")[0] == 0
    assert command(main, "seed=3", f"resume={sweep}")[0] == 0
    configs = [OmegaConf.load(file) for file in sweep.glob("seed-*/config.yaml")]
    assert {config.init_from for config in configs} == {str(first)}
    assert len(configs) == 4
    assert all(f"init_from={first}" in config.overrides for config in configs)


@pytest.mark.training
def test_a_quoted_tilde_in_runs_dir_of_a_sweep_is_the_home_directory(command, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert command(main, *ARGUMENTS, "callbacks=essential", "seed=0,1", "runs_dir='~/runs'")[0] == 0
    assert find_sweep(tmp_path).parent == tmp_path / "runs" / "sweep"
    status, out, _ = command(
        main, "-m", *ARGUMENTS, "callbacks=essential", "seed=0,1", "runs_dir=~/runs", "resume=latest"
    )
    assert status == 0
    assert "2 of 2 jobs finished" in out
    assert not (tmp_path / "~").exists()


@pytest.mark.training
def test_a_resumed_sweep_accepts_a_new_data_root(command, tmp_path, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(session, "collect_results", interrupted)
        assert command(main, *ARGUMENTS, "seed=0,1", f"runs_dir={tmp_path}")[0] == 130
    roots = []
    data = build.data
    monkeypatch.setattr(build, "data", lambda config: roots.append(config.data.root) or data(config))
    assert command(main, f"resume={find_sweep(tmp_path)}", "data.root=moved")[0] == 0
    assert roots == ["moved", "moved"]


@pytest.mark.training
def test_a_stopped_sweep_lists_the_stopped_job(command, tmp_path, monkeypatch):
    train = train_command.train

    def stopped(config):
        if config.seed == 1:
            config.callbacks.stop = {"_target_": "test_sweeps.Stopping"}
        return train(config)

    monkeypatch.setattr(train_command, "train", stopped)
    arguments = [*ARGUMENTS, "callbacks=essential", "+callbacks.stop=null", f"runs_dir={tmp_path}"]
    status, out, _ = command(main, *arguments, "seed=0,1,2,3")
    assert status == 130
    assert "1 of 4 jobs finished" in out
    assert "  stopped: seed-1\n  not started: 2 jobs, seed-2 to seed-3\n" in out


class Stopping(Callback):
    """Ctrl-C in the middle of a training."""

    def on_train_epoch_start(self, trainer, pl_module):
        raise KeyboardInterrupt


@pytest.mark.training
def test_the_comparison_names_the_only_finished_value_and_resuming_reports_an_invalid_one(command, tmp_path):
    arguments = [*ARGUMENTS, "callbacks=essential", f"runs_dir={tmp_path}"]
    status, out, _ = command(main, *arguments, "optimizer.lr=0.01,-1")
    assert status == 1
    row = next(line for line in out.splitlines() if line.startswith("│ 0.01"))
    assert "optimizer.lr" in out[: out.index(row)]
    assert "Table: " in out, "nothing was drawn"
    (failed,) = (file.parent for file in tmp_path.rglob("error.txt"))
    (failed / "config.yaml").write_text((failed / "config.yaml").read_text().replace("-1", "abc"))
    status, _, err = command(main, "resume=latest", f"runs_dir={tmp_path}")
    assert status == 2
    assert f"The newest unfinished run: {failed}" in err
    assert "optimizer.lr=abc is not possible: it takes a number" in err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["seed=range(0,30000000)"], "30,000,000 values of seed are too many for a sweep"),
        (["optimizer.lr=range(0.0,1.0,0.0000001)"], "values of optimizer.lr are too many for a sweep"),
        ([f"+x{number}=0,1,2,3,4,5,6,7,8,9" for number in range(8)], "100,000,000 jobs are too many for a sweep"),
        ([f"seed=choice({','.join(['1'] * 10_001)})"], "10,001 values of seed are too many for a sweep"),
    ],
)
def test_the_jobs_of_a_sweep_are_counted_before_they_are_listed(tmp_path, command, overrides, message):
    with pytest.raises(UserError, match=message):
        list_jobs(overrides, {})
    stored = {"overrides": {"hydra": [], "task": ["model=tiny", *overrides]}, "sweeper": {"params": None}}
    stored |= {"runtime": {"config_sources": []}, "job": {"config_name": "train"}}
    OmegaConf.save({"hydra": stored}, tmp_path / "multirun.yaml")
    for arguments in ([f"resume={tmp_path}"], ["-m", *overrides, f"runs_dir={tmp_path / 'runs'}"]):
        status, out, err = command(main, *arguments)
        assert status != 0
        assert message in err
        assert "Traceback" not in out + err


def test_a_sweep_of_ten_thousand_jobs_is_listed():
    assert len(list_jobs(["seed=range(0,10000)"], {})[0]) == 10_000


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (os.mkfifo, "log.txt is not a regular file: delete it, and resume the sweep"),
        (lambda log: log.mkdir(), "log.txt is not a regular file: delete it, and resume the sweep"),
        (lambda log: log.symlink_to("/dev/null"), "log.txt is a link that leads out of"),
    ],
    ids=["pipe", "folder", "link"],
)
def test_a_job_whose_log_cannot_be_written_fails_alone(make, reason, tmp_path, monkeypatch, capsys):
    job = SimpleNamespace(
        runtime=SimpleNamespace(output_dir=str(tmp_path), cwd=str(Path.cwd())),
        launcher=SimpleNamespace(_target_="hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher"),
    )
    monkeypatch.setattr(HydraConfig, "get", lambda: job)
    make(tmp_path / "log.txt")
    config = OmegaConf.create({"seed": 0})
    assert run_job(lambda _: pytest.fail("it was trained"), config, describe_error=lambda error: error) is None
    output = capsys.readouterr()
    assert reason in output.err
    assert "Traceback" not in output.err
    if "link" not in reason:
        assert reason in Run(tmp_path).describe_state()
