"""The hyperparameter search: its space, its trials, stopping and going on."""

import contextlib
import csv
import importlib.util
import io
import shlex
import sqlite3
import subprocess
import sys
import time
import warnings

import optuna
import pytest
import sqlalchemy
from conftest import PATIENCE, TINY_DATA
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState
from sqlalchemy.engine import Engine

from fashion_cnn import tune as tune_command
from fashion_cnn.cli.options import install_command
from fashion_cnn.errors import LockedError, Pruned, UserError
from fashion_cnn.plots.comparison import Trial, plot_search
from fashion_cnn.runs import Run
from fashion_cnn.runs.files import lock_file
from fashion_cnn.runs.overrides import split_swept
from fashion_cnn.sweeps import study as study_module
from fashion_cnn.sweeps.search import PruneTrial, _describe_best, search_space
from fashion_cnn.sweeps.study import (
    TRIAL_HEADER,
    check_trials,
    count_start,
    current_trials,
    format_trial,
    open_study,
    run_trials,
    study_errors_reported,
    write_results,
)
from fashion_cnn.train import main as train_main
from fashion_cnn.training import build, session
from fashion_cnn.training.callbacks import HEADER, EpochLog
from fashion_cnn.tune import main

SPACE = {"x": FloatDistribution(0.0, 1.0)}


@pytest.fixture(autouse=True)
def quiet():
    optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture(autouse=True)
def studies_that_need_not_outlast_a_power_failure():
    """SQLite waits for the disk in none of the hundreds of commits of a trial."""

    def relax(connection, _):
        connection.execute("PRAGMA synchronous=OFF")

    sqlalchemy.event.listen(Engine, "connect", relax)
    yield
    sqlalchemy.event.remove(Engine, "connect", relax)


def test_overrides_with_open_values_are_separated_from_the_others():
    swept, others = split_swept(["model=tiny", "lr=interval(0,1)", "seed=1,2", "--help", "a[=b", "x=[1,2]"])
    assert swept == ["lr=interval(0,1)", "seed=1,2"]
    assert others == ["model=tiny", "--help", "a[=b", "x=[1,2]"]


def test_hydra_sweeps_become_distributions():
    space = search_space(
        {"lr": "tag(log,interval(0.001,0.1))", "wd": "interval(0.0,1.0)"},
        ["n=int(interval(1,9))", "w=[1],[2]", "d=range(0,5,2)", "e=range(1,4.5,1)", "wd=choice(a,b)"],
    )
    assert space == {
        "lr": FloatDistribution(0.001, 0.1, log=True),
        "wd": CategoricalDistribution(["a", "b"]),
        "n": IntDistribution(1, 9),
        "w": CategoricalDistribution(["[1]", "[2]"]),
        "d": IntDistribution(0, 4, step=2),
        "e": IntDistribution(1, 4),
    }
    with pytest.raises(UserError, match="search space is empty"):
        search_space({}, [])
    with pytest.raises(UserError, match="leaves no value open"):
        search_space({"lr": 0.1}, [])
    with pytest.raises(UserError, match="is not a valid range"):
        search_space({"lr": "tag(log,interval(0.0,1.0))"}, [])


def a_study(folder, **settings):
    return open_study(f"sqlite:///{folder}/study.db", "test", settings, optuna.pruners.NopPruner(), folder)


@pytest.mark.training
def test_complete_pruned_and_failed_trials_count(tmp_path):
    def train(trial, path):
        if trial.number == 1:
            raise Pruned("pruned after epoch 1")
        if trial.number == 2:
            raise MemoryError("no room")
        return trial.params["x"]

    study = a_study(tmp_path)
    reported = []
    run_trials(study, SPACE, 5, tmp_path, train, reported.append)
    states = [trial.state for trial in study.trials]
    assert states == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, *[TrialState.COMPLETE] * 2]
    assert study.trials[2].user_attrs["error"] == "MemoryError: no room"
    assert len(reported) == 5


def test_each_trial_is_a_line_with_its_outcome_and_the_best_so_far():
    space = {"optimizer.lr": FloatDistribution(0, 1), "model.lr": IntDistribution(0, 9)}
    params = {"optimizer.lr": 0.123456, "model.lr": 3}
    settings = {"params": params, "distributions": space}
    best = optuna.create_trial(value=0.9125, **settings)
    reported = {"intermediate_values": {33: 0.5, 66: 0.805}, "user_attrs": {"epochs": 2}}
    pruned = optuna.create_trial(state=TrialState.PRUNED, **reported, **settings)
    failed = optuna.create_trial(state=TrialState.FAIL, user_attrs={"error": "MemoryError: no room"}, **settings)
    values = "optimizer.lr=0.1235 model.lr=3"
    assert format_trial(best, best).split()[1:] == ["91.25", "91.25", f"({best.number})", *values.split()]
    assert format_trial(pruned, best).endswith(f"{values}  pruned after epoch 2, 66% of its schedule")
    assert format_trial(failed, None).split()[1:3] == ["-", "-"]
    assert format_trial(failed, None).endswith(f"{values}  failed: MemoryError: no room")


def test_plots_of_a_search_are_labelled_with_trials_and_accuracy(tmp_path, monkeypatch):
    def train(trial):
        x = trial.suggest_float("x", 0.0, 1.0)
        for epoch in (1, 2, 3):
            trial.report(x / epoch, epoch)
        return x

    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(train, n_trials=5)
    drawn = {}
    monkeypatch.setattr(study_module, "save_figure", lambda figure, file: drawn.update({file.stem: figure.axes[0]}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        write_results(study, tmp_path)
    assert {name: axes.get_xlabel() for name, axes in drawn.items()} == {
        "history": "trial",
        "curves": "percent of the schedule",
        "importance": "share of the variance between the trials (%, fANOVA)",
    }
    for name in ("history", "curves"):
        assert drawn[name].get_ylabel() == "validation accuracy (%)"
        assert all(tick == round(tick) for tick in drawn[name].get_xticks())
    best = [line for line in drawn["curves"].lines if line.get_label() == f"best trial ({study.best_trial.number})"]
    assert [max(line.get_ydata()) for line in best] == [100 * study.best_value]
    assert [text.get_text() for text in drawn["history"].figure.legends[0].get_texts()] == ["trial", "best so far"]


class Epochs:
    """A trainer that has finished the epochs of a trial up to `current_epoch`, of 10 steps each."""

    def __init__(self, max_epochs):
        self.max_epochs = max_epochs
        self.estimated_stepping_batches = 10 * max_epochs
        self.callbacks = [EpochLog({})]

    def run(self, trial, accuracies, start=0):
        """Report the accuracies of the epochs from `start`; return the number of the epoch that was pruned."""
        callback = PruneTrial(trial)
        for self.current_epoch, accuracy in enumerate(accuracies, start):
            self.global_step = 10 * (self.current_epoch + 1)
            self.callbacks[0].metrics = {} if accuracy is None else {"val/accuracy": accuracy}
            try:
                callback.on_train_epoch_end(self, None)
            except Pruned:
                return self.current_epoch + 1
        return None


def a_study_with(pruner):
    return optuna.create_study(direction="maximize", pruner=pruner)


def test_accuracy_is_reported_by_percent_of_the_schedule_and_interpolated():
    study = a_study_with(optuna.pruners.NopPruner())
    trial = study.ask()
    Epochs(4).run(trial, [0.5, None, 0.7, 0.8])
    values = study.trials[0].intermediate_values
    assert list(values) == list(range(25, 101))
    assert [values[percent] for percent in (25, 50, 75, 100)] == pytest.approx([0.5, 0.6, 0.7, 0.8])
    assert study.trials[0].user_attrs["epochs"] == 4


def test_accuracies_of_long_trainings_are_reported_once_for_each_percent():
    study = a_study_with(optuna.pruners.NopPruner())
    Epochs(400).run(study.ask(), [epoch / 400 for epoch in range(1, 401)])
    assert list(study.trials[0].intermediate_values) == list(range(101))


def test_a_continued_trial_goes_on_with_the_reported_accuracies():
    study = a_study_with(optuna.pruners.NopPruner())
    Epochs(4).run(study.ask(), [0.5, 0.6])
    study.add_trial(
        optuna.create_trial(state=TrialState.WAITING, intermediate_values=study.trials[0].intermediate_values)
    )
    # The killed process had reported its second epoch, but not yet written it to the checkpoint.
    Epochs(4).run(study.ask(), [0.6, 0.7, 0.8], start=1)
    values = study.trials[1].intermediate_values
    assert [values[percent] for percent in (25, 50, 75, 100)] == pytest.approx([0.5, 0.6, 0.7, 0.8])


def finished_trials(study, *accuracies_by_length):
    """Add trials whose accuracy rises evenly to the given one, whatever their length."""
    for length, accuracy in accuracies_by_length:
        trial = study.ask()
        assert Epochs(length).run(trial, [accuracy * epoch / length for epoch in range(1, length + 1)]) is None
        study.tell(trial, accuracy)


def test_trials_of_different_length_are_pruned_by_fraction_of_their_schedule():
    study = a_study_with(optuna.pruners.MedianPruner(n_startup_trials=3, n_warmup_steps=10))
    finished_trials(study, (3, 0.9), (4, 0.9), (5, 0.9))
    # Better than the others at 20%, though worse than each of them after two epochs.
    assert Epochs(10).run(study.ask(), [0.11 * epoch for epoch in range(1, 8)]) is None
    assert Epochs(10).run(study.ask(), [0.07 * epoch for epoch in range(1, 8)]) == 2


def test_no_trial_is_pruned_in_the_percents_of_the_warmup():
    study = a_study_with(optuna.pruners.MedianPruner(n_startup_trials=1, n_warmup_steps=35))
    finished_trials(study, (10, 0.9), (10, 0.9))
    assert Epochs(10).run(study.ask(), [0.01] * 10) == 4
    assert Epochs(5).run(study.ask(), [0.01] * 5) == 2


def test_hyperband_stops_trials_at_the_percents_of_its_resources():
    study = a_study_with(optuna.pruners.SuccessiveHalvingPruner(min_resource=30, reduction_factor=3))
    finished_trials(study, (10, 0.7), (4, 0.8), (20, 0.9))
    assert Epochs(10).run(study.ask(), [0.01] * 10) == 3


def test_a_study_that_counted_epochs_is_refused(tmp_path):
    old = optuna.create_study(storage=f"sqlite:///{tmp_path}/study.db", study_name="test", direction="maximize")
    old.ask().report(0.5, 1)
    with pytest.raises(UserError, match=r"the study test is of an older version.*tune.study=NAME"):
        a_study(tmp_path)


def test_a_study_without_reports_is_continued(tmp_path):
    optuna.create_study(storage=f"sqlite:///{tmp_path}/study.db", study_name="test", direction="maximize").ask()
    a_study(tmp_path).ask().report(0.5, 1)
    assert len(a_study(tmp_path).trials) == 2


@pytest.mark.training
def test_repeated_equal_failures_end_the_search_and_do_not_count_later(tmp_path):
    def fails(trial, path):
        raise FileNotFoundError("no data there")

    study = a_study(tmp_path)
    with pytest.raises(UserError, match=r"3 trials in a row failed with the same error.*no data there"):
        run_trials(study, SPACE, 20, tmp_path, fails, lambda trial: None)
    assert len(study.trials) == 3
    run_trials(study, SPACE, 4, tmp_path, lambda trial, path: 1.0, lambda trial: None)
    assert [trial.state for trial in study.trials] == [TrialState.FAIL] * 3 + [TrialState.COMPLETE] * 4


@pytest.mark.training
def test_different_failures_do_not_end_the_search(tmp_path):
    def fails(trial, path):
        raise MemoryError(f"no room for {trial.number // 2}")

    study = a_study(tmp_path)
    run_trials(study, SPACE, 6, tmp_path, fails, lambda trial: None)
    assert len(study.trials) == 6


@pytest.mark.training
def test_a_killed_trial_is_continued_in_its_directory(tmp_path):
    class Killed(BaseException):
        pass

    def dies(trial, path):
        trial.report(0.5, 1)
        Run(path).create()
        Run(path).config_file.write_text("seed: 0\n")
        raise Killed

    study = a_study(tmp_path)
    with pytest.raises(Killed):
        run_trials(study, SPACE, 3, tmp_path, dies, print)
    assert [trial.state for trial in study.trials] == [TrialState.RUNNING]
    paths = []

    def train(trial, path):
        paths.append((path, trial.params["x"]))
        return 1.0

    again = a_study(tmp_path)
    run_trials(again, SPACE, 3, tmp_path, train, lambda trial: None)
    first = study.trials[0]
    assert paths[0] == (tmp_path / "trial-0000", first.params["x"]), "the same settings, where it was"
    assert again.trials[1].intermediate_values == {1: 0.5}
    assert len(again.trials) == 4
    assert len(current_trials(again)) == 3
    assert {trial.state for trial in current_trials(again)} == {TrialState.COMPLETE}


def test_a_trial_of_another_process_is_not_requeued(tmp_path):
    study = a_study(tmp_path)
    trial = study.ask(SPACE)
    run = Run(tmp_path / "trial-0000")
    trial.set_user_attr("run", str(run.path))
    run.create()
    run.config_file.write_text("seed: 0\n")
    with run.locked():
        run_trials(study, SPACE, 2, tmp_path, lambda trial, path: 1.0, lambda trial: None)
    assert [trial.state for trial in study.trials] == [TrialState.RUNNING, TrialState.COMPLETE]


def test_a_trial_that_takes_long_to_prepare_is_not_taken_over(tmp_path, monkeypatch):
    monkeypatch.setattr(study_module, "_HANDOVER_SECONDS", 0)

    def train(trial, path):
        if trial.number == 0:
            # Another process starts while this one has written nothing yet.
            run_trials(a_study(tmp_path), SPACE, 2, tmp_path, train, lambda trial: None)
        return 1.0

    study = a_study(tmp_path)
    run_trials(study, SPACE, 2, tmp_path, train, lambda trial: None)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 2


def test_one_process_at_a_time_counts_and_draws_trials(tmp_path, monkeypatch):
    study, is_locked = a_study(tmp_path), []
    ask = study.ask

    def watched(space):
        with pytest.raises(LockedError), lock_file(tmp_path / ".lock", "busy", timeout=0):
            pass
        is_locked.append(True)
        return ask(space)

    monkeypatch.setattr(study, "ask", watched)
    run_trials(study, SPACE, 2, tmp_path, lambda trial, path: 1.0, lambda trial: None)
    assert is_locked == [True, True]


def test_each_process_of_a_study_has_its_own_number(tmp_path):
    assert [count_start(a_study(tmp_path), tmp_path) for _ in range(3)] == [0, 1, 2]
    a_study(tmp_path).set_user_attr("starts", "many")
    with pytest.raises(UserError, match="the study test cannot be read or written"):
        count_start(a_study(tmp_path), tmp_path)


@pytest.mark.slow
def test_a_study_is_continued_only_with_the_same_settings(tmp_path):
    a_study(tmp_path, fixed=["seed=1"])
    assert a_study(tmp_path, fixed=["seed=1"])
    with pytest.raises(UserError, match=r"seed: 1 there, 2 here.*tune.study=NAME"):
        a_study(tmp_path, fixed=["seed=2"])
    with pytest.raises(UserError, match="cannot be stored"):
        open_study("sqlite:////nowhere/study.db", "test", {}, optuna.pruners.NopPruner(), tmp_path)


_OPENS_A_STUDY = """
import sys, time
from pathlib import Path
import optuna
from fashion_cnn.sweeps.study import open_study
folder, number = Path(sys.argv[1]), sys.argv[2]
(folder / f"ready-{number}").touch()
while not (folder / "go").exists():
    time.sleep(0.001)
open_study(f"sqlite:///{folder}/study.db", "test", {"fixed": []}, optuna.pruners.NopPruner(), folder)
"""


@pytest.mark.processes
def test_concurrent_processes_create_a_study_once(tmp_path):
    numbers = [str(number) for number in range(3)]
    started = [
        subprocess.Popen([sys.executable, "-c", _OPENS_A_STUDY, str(tmp_path), number], stderr=subprocess.PIPE)
        for number in numbers
    ]
    while not all((tmp_path / f"ready-{number}").exists() for number in numbers):
        assert all(process.poll() is None for process in started)
        time.sleep(0.01)
    (tmp_path / "go").touch()
    message = [process.communicate(timeout=PATIENCE)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], message
    assert len(optuna.get_all_study_names(f"sqlite:///{tmp_path}/study.db")) == 1


@pytest.mark.training
def test_the_storage_of_a_search_adds_no_settings_and_no_directories(command, tmp_path):
    arguments = [*TINY_DATA, f"runs_dir={tmp_path}", "trainer.max_epochs=1", "optimizer.lr=interval(0.01,0.1)"]
    assert command(main, *arguments, "tune.trials=1")[0] == 0
    folder, rate = tmp_path / "tune" / "tiny", optuna.distributions.FloatDistribution(0.01, 0.1)
    call = "{_target_: subprocess.call, args: [touch, pwned]}"
    study = optuna.load_study(study_name="tiny", storage=f"sqlite:///{folder / 'study.db'}")

    def add_trial(**further):
        distributions = {name: optuna.distributions.CategoricalDistribution([value]) for name, value in further.items()}
        study.add_trial(
            optuna.create_trial(
                state=TrialState.WAITING,
                params={"optimizer.lr": 0.05, **further},
                distributions={"optimizer.lr": rate, **distributions},
                user_attrs={"run": str(tmp_path / "elsewhere")},
            )
        )

    add_trial()
    assert command(main, *arguments, "tune.trials=2")[0] == 0
    assert not (tmp_path / "elsewhere").exists()
    assert Run(folder / "elsewhere").state == "finished"
    add_trial(**{"+callbacks.z": call})
    status, _, err = command(main, *arguments, "tune.trials=3")
    assert status == 1
    assert f"+callbacks.z={call}, which is not searched" in err


def test_the_best_accuracy_has_an_interval_and_few_trials_rank_no_settings():
    # Wilson's interval of 136 of 500: 0.2348 to 0.3126.
    text = _describe_best(0.272, 500, [0.27, 0.248, 0.2])
    assert "with 500 validation images is 23.48% to 31.26%, in which 2 of the 3 other complete trials lie" in text
    trials = [Trial(number, True, 0.2 + number / 100, {100: 0.2 + number / 100}) for number in range(4)]
    figures = plot_search(trials, {"lr": 0.9, "decay": 0.1}, title="search tiny")
    assert "from 4 complete trials, too few to rank the settings reliably" in figures["importance"].get_suptitle()
    for name in ("history", "curves"):
        figures[name].draw_without_rendering()
        (legend,) = figures[name].legends
        assert legend.get_window_extent().y1 < figures[name].axes[0].get_window_extent().y0, "outside the axes"


@pytest.mark.training
def test_a_search_through_the_command_line(command, tmp_path):
    arguments = [*TINY_DATA, f"runs_dir={tmp_path}", "callbacks=essential", "tune.pruner.n_startup_trials=2"]
    swept = ["sweep=optimizer", "optimizer.lr=tag(log,interval(1e-4,1e-1))", "seed=0,1"]
    status, out, err = command(main, *arguments, *swept, "tune.trials=4")
    assert (status, err) == (0, "")
    folder = tmp_path / "tune" / "tiny"
    rows = list(csv.DictReader(io.StringIO((folder / "trials.csv").read_text())))
    assert len(rows) == 4
    assert {row["state"] for row in rows} <= {"complete", "pruned", "fail"}
    assert all(row["epochs"] == "3" for row in rows if row["state"] == "complete")
    complete = [row for row in rows if row["state"] == "complete"]
    best = max(complete, key=lambda row: float(row["val/accuracy"]))
    lines = out[out.index(TRIAL_HEADER) :].splitlines()[1:5]
    assert [line.split()[0] for line in lines] == ["0", "1", "2", "3"], "one line a trial"
    assert all(" lr=" in line and " weight_decay=" in line for line in lines)
    assert f"{float(best['val/accuracy']) * 100:.2f} ({best['trial']})" in lines[-1]
    assert HEADER not in out
    assert f"Best: trial {best['trial']}, validation {float(best['val/accuracy']):.2%}" in out
    assert "Its 95% interval with 32 validation images is " in out
    assert f"of the {len(complete) - 1} other complete trials lie" in out
    assert Run(folder / f"trial-{int(best['trial']):04}").results()["val/accuracy"] == float(best["val/accuracy"])
    assert not any("test/accuracy" in Run(file.parent).results() for file in folder.glob("*/results.json"))
    assert (folder / "history.png").exists()

    assert set(rows[0]) >= {"optimizer.lr", "optimizer.weight_decay", "seed"}
    assert "data.batch_size" not in rows[0], "what was typed is not searched"

    status, out, _ = command(main, *arguments, *swept, "tune.trials=5")
    assert status == 0
    assert "4 of 5 trials exist" in out
    status, _, err = command(main, *arguments, *swept, "tune.trials=5", "optimizer=sgd")
    assert status == 2
    assert "tune.study=NAME" in err


def test_a_search_writes_through_no_link_that_leads_out_of_its_directory(command, tmp_path):
    link = tmp_path / "runs" / "tune" / "tiny" / "trial-0000"
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / "elsewhere")
    status, _, err = command(main, *TINY_DATA, f"runs_dir={tmp_path / 'runs'}")
    assert (status, list(link.parent.iterdir())) == (1, [link])
    assert f"{link} is a link that leads out of {link.parent}, to {tmp_path / 'elsewhere'}" in err


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("tune.trials=0", "tune.trials=0"),
        ("runs_dir=/proc/none", "choose another runs_dir=DIR"),
        ("data.val_size=0", "leaves no validation set"),
        ("optimizer.lrr=interval(0,1)", "Did you mean optimizer.lr?"),
        ("tune.trails=3", "Did you mean tune.trials?"),
        ("tune.pruner.n_warmup_steps=200", "tune.pruner.n_warmup_steps=200 is not a percent of the schedule"),
        ("trainer.devices=2", "A trial of a search trains on one device, not on 2: set trainer.devices=1."),
    ],
)
def test_user_errors_are_reported_before_the_study_exists(command, tmp_path, argument, message):
    status, out, err = command(main, *TINY_DATA, f"runs_dir={tmp_path / 'runs'}", argument)
    assert status in (1, 2)
    assert message in err
    assert "Traceback" not in out + err
    assert not (tmp_path / "runs").exists()


def test_missing_optuna_is_reported_with_the_install_command(command, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *rest: None if name == "optuna" else find_spec(name, *rest)
    )
    status, _, err = command(tune_command.main)
    assert status == 1
    assert f"This needs optuna: {install_command('sweeps')}" in err


@pytest.mark.training
def test_search_on_an_image_folder(command, tmp_path, picture_folder, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pictures = ["data=image_folder", f"data.root={picture_folder}", "data.batch_size=8"]
    network = ["model=tiny", "model.network.widths=[8,8]", "model.network.depths=[0,0]", "trainer.max_epochs=1"]
    search = ["tune.study=own", "tune.trials=1", f"runs_dir={tmp_path}", "optimizer.lr=interval(0.01,0.1)"]
    status, out, _ = command(main, *pictures, *network, *search)
    assert status == 0
    assert "1 trial: 1 complete" in out
    assert f"data.root={picture_folder}" in out, "the command that trains with its settings"
    status, _, err = command(main, *pictures, *network, *search, "data.val_share=0")
    assert (status, "data.val_share=0 leaves no validation set" in err) == (2, True)


@pytest.mark.training
def test_trials_have_the_settings_of_the_sweep_file(command, tmp_path):
    arguments = [*TINY_DATA, f"runs_dir={tmp_path}", "callbacks=essential", "tune.trials=1"]
    status, out, _ = command(main, *arguments, "sweep=regularisation")
    assert status == 0
    assert "Searching data.augmentation.erasing.p, model.label_smoothing, optimizer.weight_decay\n" in out, "no seed"
    assert Run(tmp_path / "tune" / "tiny" / "trial-0000").config().data.train_fraction == 0.2
    typed = out.splitlines()[-1].split()
    assert "data.train_fraction=0.2" in typed
    assert "test=false" not in typed, "it is to be measured on test"


@pytest.mark.training
def test_trials_start_from_the_newest_run_at_the_start_of_the_study(command, tmp_path):
    arguments = [*TINY_DATA, f"runs_dir={tmp_path}", "callbacks=essential"]
    search = [*arguments, "init_from=latest", "optimizer.lr=interval(0.01,0.1)"]
    assert command(train_main, *arguments)[0] == 0
    (first,) = (file.parent for file in tmp_path.rglob("results.json"))
    for trials in (2, 3):
        status, out, _ = command(main, *search, f"tune.trials={trials}")
        assert status == 0
        assert f"init_from={first}" in out.splitlines()[-1]
    runs = [Run(file.parent) for file in tmp_path.glob("tune/tiny/*/results.json")]
    assert [run.config().init_from for run in runs] == [str(first)] * 3


@pytest.mark.training
def test_a_stopped_trial_accepts_a_new_data_root(command, tmp_path, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    search = [*TINY_DATA, f"runs_dir={tmp_path}", "optimizer.lr=interval(0.01,0.1)", "tune.trials=1"]
    with monkeypatch.context() as patch:
        patch.setattr(session, "collect_results", interrupted)
        assert command(main, *search)[0] == 130
    roots = []
    data = build.data
    monkeypatch.setattr(build, "data", lambda config: roots.append(config.data.root) or data(config))
    assert command(main, *search, "data.root=moved")[0] == 0
    assert roots == ["moved"]


@pytest.mark.training
def test_a_searched_length_is_pruned_by_hyperband(command, tmp_path):
    arguments = [*TINY_DATA, f"runs_dir={tmp_path}", "callbacks=essential", "tune/pruner=hyperband"]
    status, _, err = command(main, *arguments, "trainer.max_epochs=2,4", "tune.trials=4")
    assert (status, err) == (0, "")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "tune" / "tiny" / "trials.csv").read_text())))
    assert all(row["epochs"] == row["trainer.max_epochs"] for row in rows if row["state"] == "complete")
    assert "complete" in {row["state"] for row in rows} <= {"complete", "pruned"}


@pytest.mark.training
def test_random_search_from_the_help_text(command, tmp_path):
    arguments = [*TINY_DATA, f"runs_dir={tmp_path}", "callbacks=essential", "tune/sampler=random", "tune/pruner=none"]
    status, out, err = command(main, *arguments, "optimizer.lr=interval(0.01,0.1)", "tune.trials=2")
    assert (status, err) == (0, "")
    assert "2 trials: 2 complete" in out
    assert "Searching optimizer.lr\n" in out, "what was left open, and nothing beside it"
    assert "tune/" not in out.splitlines()[-1], "its best command is one of train"
    status, _, err = command(train_main, f"resume={tmp_path / 'tune' / 'tiny'}")
    assert status == 1
    assert "repeat its command, python -m fashion_cnn.tune … tune.study=tiny" in err


@pytest.mark.training
def test_printed_commands_of_a_search_repeat_what_was_typed(command, tmp_path, monkeypatch):
    folder = tmp_path / "conf" / "model"
    folder.mkdir(parents=True)
    (folder / "own.yaml").write_text("network:\n  _target_: fashion_cnn.models.KerasCNN\n")
    data = [part for part in TINY_DATA if not part.startswith("model")]
    search = [
        "--config-dir",
        str(folder.parent),
        *data,
        "model=own",
        "trainer.max_epochs=1",
        f"runs_dir={tmp_path / 'r'}",
    ]
    search += ["optimizer.lr=interval(0.01,0.1)", "tune.trials=1"]
    with monkeypatch.context() as patch:
        patch.setattr(session, "collect_results", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        status, _, err = command(main, *search)
    assert status == 130
    typed = shlex.split(err.splitlines()[-1])
    assert sorted(typed[3:]) == sorted(search)
    status, out, _ = command(main, *typed[3:])
    assert status == 0
    best = shlex.split(out.splitlines()[-1])[3:]
    assert best[:2] == search[:2]
    assert f"runs_dir={tmp_path / 'r'}" in best
    assert command(train_main, *best)[0] == 0


@pytest.mark.parametrize("arguments", [["resume=latest"], ["sweep=optimizer", "resume=runs/tune/tiny"]])
def test_resume_is_rejected_by_tune(command, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    status, _, err = command(main, *TINY_DATA, *arguments)
    assert status == 2
    assert "run the command of the search again" in err
    assert not list(tmp_path.iterdir())


def test_cfg_prints_the_config_wherever_it_is_typed(command):
    for arguments in (("--cfg", "job", "sweep=optimizer"), ("sweep=optimizer", "--cfg", "job")):
        status, out, err = command(main, *arguments)
        assert (status, err) == (0, "")
        assert "\ntune:\n" in out


_SPACE = {"data.batch_size": CategoricalDistribution(["16", "20"]), "optimizer.lr": FloatDistribution(0.1, 1.0)}


@pytest.mark.parametrize(
    "forged",
    [
        {"params": {"optimizer.lr": 2.0}, "distributions": {"optimizer.lr": FloatDistribution(0.1, 3.0)}},
        {
            "params": {"data.batch_size": "{a: b}"},
            "distributions": {"data.batch_size": CategoricalDistribution(["{a: b}"])},
        },
        {"params": {"further": "x"}, "distributions": {"further": CategoricalDistribution(["x"])}},
        {"system_attrs": {"fixed_params": {"data.batch_size": "{a: b}"}}},
        {"user_attrs": {"run": 1}},
    ],
    ids=["range", "choice", "key", "queued", "run"],
)
def test_a_study_with_values_that_nobody_searched_is_refused(forged):
    study = optuna.create_study(study_name="s", direction="maximize")
    study.enqueue_trial({"data.batch_size": "16"})
    study.ask(_SPACE)
    check_trials(study, _SPACE)
    study.add_trial(optuna.create_trial(**{"state": TrialState.WAITING, **forged}))
    with pytest.raises(UserError, match="the study s cannot be read or written"):
        check_trials(study, _SPACE)


@pytest.mark.parametrize("settings", ["'x'", '{"fixed": 1}', '{"fixed": [], "searched": []}', "{"])
def test_a_study_with_damaged_settings_is_one_message(tmp_path, settings):
    a_study(tmp_path, fixed=[], searched={})
    with contextlib.closing(sqlite3.connect(tmp_path / "study.db")) as database, database:
        database.execute("UPDATE study_user_attributes SET value_json=? WHERE key='settings'", [settings])
    with pytest.raises(UserError, match="the study test cannot be read or written"):
        a_study(tmp_path, fixed=["a=1"], searched={})


@pytest.mark.slow
def test_a_database_that_refuses_a_trial_is_one_message(tmp_path):
    study = a_study(tmp_path)
    with contextlib.closing(sqlite3.connect(tmp_path / "study.db")) as database, database:
        database.execute("CREATE TRIGGER t AFTER INSERT ON trials BEGIN SELECT load_extension('x'); END")
    expected = pytest.raises(UserError, match="the study test cannot be read or written")
    with expected, study_errors_reported("test", optuna.exceptions.StorageInternalError):
        study.ask()


_SLOW = "replace(hex(zeroblob(100)), '0', 'a')"


@pytest.mark.parametrize(
    "forged",
    [
        "CREATE TRIGGER t BEFORE INSERT ON trials BEGIN DELETE FROM studies; END",
        "CREATE VIEW v AS SELECT count(*) FROM trials",
        "CREATE TABLE t (a INTEGER, b TEXT GENERATED ALWAYS AS (a || a))",
        "ALTER TABLE trials ADD COLUMN b TEXT AS (a || a)",
        f"CREATE TABLE t (a INTEGER DEFAULT ({_SLOW}))",
        f"CREATE TABLE t (a INTEGER CHECK ({_SLOW} > 'a'))",
        f"CREATE TABLE t (a INTEGER CHECK ({_SLOW.replace('hex', chr(34) + 'hex' + chr(34))} > 1))",
        "CREATE INDEX i ON trials (hex(state))",
        "CREATE INDEX i ON trials (state) WHERE hex/**/(state) > 1",
        "CREATE VIRTUAL TABLE t USING fts5(a)",
        "PRAGMA writable_schema=1; INSERT INTO sqlite_master VALUES ('table', 't', 'trials', 0, "
        "'CREATE TRIGGER t BEFORE INSERT ON trials BEGIN DELETE FROM studies; END')",
    ],
)
def test_a_study_whose_database_runs_code_is_refused_before_optuna_opens_it(tmp_path, monkeypatch, forged):
    a_study(tmp_path)
    with contextlib.closing(sqlite3.connect(tmp_path / "study.db")) as database:
        database.executescript(forged.replace("(a || a)", "(state || state)" if "ALTER" in forged else "(a || a)"))
    monkeypatch.setattr(optuna, "create_study", lambda **_: pytest.fail("Optuna opens the study"))
    with pytest.raises(UserError, match="the study test cannot be read or written"):
        a_study(tmp_path)


def test_an_error_without_a_message_is_reported_by_its_name():
    expected = pytest.raises(UserError, match=r"the study s cannot be read or written \(AssertionError\)")
    with expected, study_errors_reported("s"):
        raise AssertionError


def test_an_unfinished_transaction_of_a_killed_process_is_undone(tmp_path):
    a_study(tmp_path).ask()
    killed = (
        f"import os, sqlite3; d = sqlite3.connect({str(tmp_path / 'study.db')!r}); d.execute('PRAGMA cache_size=1');"
        "d.execute('DELETE FROM trials'); d.execute('CREATE TABLE t AS SELECT zeroblob(1000000) a'); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", killed], check=True)
    assert (tmp_path / "study.db-journal").exists()
    assert len(a_study(tmp_path).trials) == 1
