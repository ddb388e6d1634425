"""The command line: help, error messages, paths."""

import functools
import gc
import os
import re
import shlex
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, TINY_DATA
from omegaconf import OmegaConf
from rich.table import Table

from fashion_cnn import __main__ as list_commands
from fashion_cnn import index
from fashion_cnn import train as train_command
from fashion_cnn.analysis.verdict import training_command
from fashion_cnn.cli.console import print_end
from fashion_cnn.cli.errors import describe_error
from fashion_cnn.cli.main import CONFIG_DIR, paused_garbage_collection
from fashion_cnn.cli.options import install_command
from fashion_cnn.errors import UserError
from fashion_cnn.runs import Run, trust
from fashion_cnn.runs.trust import python_path_of
from fashion_cnn.terminal import print_table, progress_bar, wide_console
from fashion_cnn.train import main
from fashion_cnn.training import build
from fashion_cnn.training.callbacks import HEADER

COMMANDS = [file.stem for file in CONFIG_DIR.glob("*.yaml")]

# Calls each command as `python -m` does, several times in one process, and lists the heavy packages that are imported.
CALL_SEVERAL_TIMES = """
import sys
from importlib import import_module

from hydra.core.global_hydra import GlobalHydra

for module in sys.argv[1:]:
    main = import_module(module + ".__main__" * module.endswith(".runs")).main
    for arguments in (["--help"], ["--cfg", "job"], ["no_such_option=1"]):
        sys.argv[1:] = arguments
        GlobalHydra.instance().clear()
        try:
            main()
        except SystemExit as stop:
            print("exit status", stop.code)
        print("--- imported", [name for name in ("torch", "lightning", "matplotlib", "pandas") if name in sys.modules])
    for stream in (sys.stdout, sys.stderr):
        print("--- end of a command", file=stream)
"""


class OwnNetwork(torch.nn.Module):
    """A network of a user with an option of its own, instead of those of the package's networks."""

    def __init__(self, *, in_channels, num_classes, width, activation="relu"):
        super().__init__()
        self.classifier = torch.nn.LazyLinear(num_classes)

    def forward(self, images):
        return self.classifier(images.flatten(1))


@functools.cache
def called_several_times():
    """Return what each command prints on standard output and on standard error."""
    typed = [sys.executable, "-c", CALL_SEVERAL_TIMES, *(f"fashion_cnn.{module}" for module in COMMANDS)]
    answer = subprocess.run(typed, capture_output=True, text=True, cwd=REPOSITORY, check=True)
    texts = (text.split("--- end of a command\n") for text in (answer.stdout, answer.stderr))
    return dict(zip(COMMANDS, zip(*(parts[:-1] for parts in texts), strict=True), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("module", COMMANDS)
def test_help_config_and_error_messages_do_not_import_torch(module):
    out, err = called_several_times()[module]
    parts = re.split(r"--- imported (.*)\n", out)
    assert parts[1::2] == ["[]"] * 3
    help_text, config_text, error_output, rest = parts[0::2]
    assert f"Usage: python -m fashion_cnn.{module}" in help_text
    assert len(help_text.splitlines()) < 70
    assert "working_dir" not in help_text
    assert "trust: null" in config_text
    assert error_output == "exit status 2\n"
    assert rest == ""
    assert err.startswith("error: unknown option 'no_such_option'")


def test_help_explains_each_option(command):
    status, out, _ = command(index.main, "--help")
    assert status == 0
    assert (
        "# Build the catalogue anew, for example with another network; the old one stays in use until the new one is "
        "complete.\nrebuild: " in out
    )
    assert "$CONFIG" not in out
    assert "hydra:" not in out


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.lrr=1", "unknown option 'optimizer.lrr'. Did you mean optimizer.lr? --cfg job lists all options."),
        ("trainer.max_epochs=-1", "trainer.max_epochs=-1 is not possible: give a whole number, 1 or more."),
    ],
)
def test_error_messages_do_not_wait_for_torch(override, message):
    code = (
        f"import sys; sys.argv = ['train', '{override}']\n"
        "from fashion_cnn.train import main\n"
        "try: main()\n"
        "finally: assert 'torch' not in sys.modules and 'lightning' not in sys.modules"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert answer.returncode == 2
    assert answer.stderr == f"error: {message}\n"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("fashion_mnist", "does not exist: correct it, or add data.download=true to download Fashion-MNIST into it."),
        ("kmnist", "does not exist: correct it, or add data.download=true to download torchvision.datasets.KMNIST"),
        ("image_folder", "is no folder: give one with a sub-folder of pictures for each class."),
    ],
)
def test_a_missing_data_folder_is_reported_before_the_training_is_imported(command, monkeypatch, data, message):
    monkeypatch.setitem(sys.modules, "fashion_cnn.training.session", None)
    status, _, err = command(main, f"data={data}", "data.root=nowhere", "model=tiny")
    assert status == 1
    assert err.startswith(f"error: data.root=nowhere {message}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model=smal"], "Did you mean small?"),
        (["modle=small"], "Did you mean model?"),
        (["lr=0.1"], "Did you mean optimizer.lr?"),
        (["epochs=3"], "Did you mean trainer.max_epochs?"),
        (["tiny"], "'tiny' has no key: type experiment=tiny or model=tiny."),
        (["shirt.jpg"], "'shirt.jpg' has no key: type KEY=VALUE."),
        (["seed=0,1"], "seed=0,1 has several values: type -m seed=0,1 for a sweep"),
        (["-model", "fast"], "type model=VALUE, without dashes"),
        (["optimizer.lr=fast"], "optimizer.lr=fast is not possible: it takes a number"),
        (["data.batch_size=0.5"], "data.batch_size=0.5 is not possible: it takes a whole number"),
        (["test=maybe"], "test=maybe is not possible: it takes true or false"),
        (["optimizer=3"], "give a group one of its choices"),
        (["+colour=red"], "unknown option 'colour'"),
        (["run=latest"], "unknown option 'run'. resume=DIR continues a run, init_from=DIR starts from its weights"),
        (["experiment=basline"], "Did you mean baseline?"),
        (["model.network={members:4}"], "unknown option 'model.network.members'."),
        (["mixing.p=0.3"], "the group mixing is not set. Add mixing=CHOICE"),
        (["experiment=speedrun_94", "data.augmentation.erasing.p=0.3"], "erasing.p' here: its section was removed"),
        (["mixing=cutmix", "mixing.q=0.3"], "unknown option 'mixing.q'"),
        (["data.batch_size=[1"], "is not a valid override"),
        (["resume=nowhere"], "nowhere does not exist"),
        (["init_from=nowhere"], "nowhere does not exist"),
        (["trainer.max_epochs=-3"], "trainer.max_epochs=-3"),
        (["trainer.max_epochs=two"], "trainer.max_epochs=two"),
        (["trainer.limit_train_batches=0"], "limit_train_batches=0"),
        (["~optimizer"], "~optimizer"),
        (["model=ensemble", "+model.network.foo=1"], "unknown option 'model.network.foo'"),
        (["--model", "fast"], "type model=VALUE, without dashes"),
        (["--optimizer.lr=3"], "type optimizer.lr=VALUE, without dashes"),
        (["data.augmentation.flip.p=2"], "RandomFlip: p=2"),
        (["mixing=null"], "~mixing removes the group mixing"),
        (["data.val_size=60000"], "data.val_size=60000"),
        (["data.probe_size=-1"], "data.probe_size=-1"),
        (["+optimizer.speed=3"], "speed"),
        (["+trainer.max_epoch=3"], "Did you mean trainer.max_epochs?"),
        (["trainer.accelerator=abacus"], "abacus"),
        (["trainer.precision=12"], "12"),
        (["seed=-1"], "seed=-1"),
        (["trainer.limit_val_batches=-1"], "limit_val_batches"),
        (["callbacks=early_stopping", "callbacks.early_stopping.mode=up"], "mode"),
        (["callbacks=early_stopping", "data.val_size=0"], "callbacks.early_stopping monitors val/accuracy"),
        (["schedule=onecycle", "schedule.final_factor=0"], "schedule.final_factor=0 are fractions of the peak"),
        (["schedule.warmup=5"], "schedule.warmup=5"),
        (["callbacks.histograms.every_n_epochs=0"], "every_n_epochs=0"),
        (["callbacks.ema.decay=1.5"], "decay=1.5"),
        (["~logger.csv"], "metrics.csv"),
        (["~callbacks.last"], "callbacks.last"),
        (["runs_dir=/proc/none"], "runs_dir=DIR"),
        (["seed=0,1", "runs_dir=/proc/none", "-m"], "choose another runs_dir=DIR"),
        (["runs_dir=null"], "runs_dir=null is no directory"),
        (["seed=0,1", "--cfg", "job", "-m"], "leave out -m"),
        (["hydra/launcher=jolib"], "Did you mean joblib?"),
        (
            ["model=tiny", "model.network._target_=test_command_line.OwnNetwork"],
            "test_command_line.OwnNetwork takes no argument 'stem', which model.network sets: add "
            "'~model.network.stem' '~model.network.widths' '~model.network.depths'",
        ),
        (
            ["model=baseline", "model.network._target_=test_command_line.OwnNetwork"],
            "test_command_line.OwnNetwork needs 'width': add +model.network.NAME=VALUE",
        ),
        (
            ["model=baseline", "model.network._target_=torch.nn.Flatten"],
            "torch.nn.Flatten takes no argument 'in_channels', which every model.network is given",
        ),
        (
            ["+logger.own={_target_:no.Logger}"],
            "logger.own._target_=no.Logger cannot be imported: No module named 'no'",
        ),
        (
            ["+callbacks.own={_target_:lightning.pytorch.callbacks.Timerr}"],
            "lightning.pytorch.callbacks has no Timerr. Did you mean Timer?",
        ),
        (["+callbacks.own={_target_:test_command_line.No}"], "callbacks.own._target_=test_command_line.No cannot be"),
        (
            ["+logger.ml={_target_:lightning.pytorch.loggers.MLFlowLogger}"],
            "+logger.ml.tracking_uri=sqlite:///mlflow.db",
        ),
        (
            ["+callbacks.finder={_target_:lightning.pytorch.callbacks.LearningRateFinder}"],
            "LearningRateFinder cannot set optimizer.lr",
        ),
        (["seed=0,1", "hydra/launcher=ray", "hydra.launcher._target_=hydra_plugins.no.Ray", "-m"], "the extra cluster"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_user_errors_are_reported_in_one_message(command, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    status, out, err = command(main, *TINY_DATA[:4], "test=true", *arguments)
    assert status in (1, 2)
    assert message in err
    assert err.startswith("error: ")
    assert "Traceback" not in out + err
    assert not list(tmp_path.rglob("config.yaml")), "no run is left behind"


def test_extras_are_installed_into_the_environment_of_this_python(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "prefix", str(REPOSITORY / ".venv"))
    assert install_command("search") == "scripts/install search"
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert install_command("search") == f"{sys.executable} -m pip install -c scripts/constraints.txt -e '.[search]'"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_reported(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, _, err = command(main, *TINY_DATA[:4], "trainer=gpu")
    hint = "trainer=default uses the hardware of this machine."
    assert (status, err) == (1, f"error: No supported gpu backend found! {hint}\n")


@pytest.mark.training
def test_a_sweep_job_on_two_devices_is_rejected(command, tmp_path):
    status, out, err = command(main, "-m", *TINY_DATA, f"runs_dir={tmp_path}", "seed=0,1", "trainer.devices=2")
    assert status == 1
    assert err.count("set trainer.devices=1") == 2
    assert out.count("failed (A job of a sweep trains on one device") == 2


@pytest.mark.parametrize(
    ("module", "task", "message"),
    [
        ("train", "_train_for_sweeper", "Stopped before the training started."),
        ("explain", "explain", "Stopped."),
    ],
)
def test_ctrl_c_message_depends_on_the_command(command, monkeypatch, module, task, message):
    def interrupted(config):
        raise KeyboardInterrupt

    module = __import__(f"fashion_cnn.{module}", fromlist=["main"])
    monkeypatch.setattr(module, task, interrupted)
    assert command(module.main) == (130, "", f"\n{message}\n")


def test_a_bug_keeps_its_traceback(command, monkeypatch):
    def broken(config):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(train_command, "train", broken)
    with pytest.raises(ZeroDivisionError):
        command(main)


def test_a_cyclic_chain_of_causes_is_followed_once():
    first, second = UserError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    assert describe_error(second, "train", str(CONFIG_DIR)) is first
    first, second = KeyError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    assert describe_error(second, "train", str(CONFIG_DIR)) is None


@pytest.mark.training
@pytest.mark.parametrize("typed", [["--cfg", "job"], ["-m", "seed=0,1"]], ids=["--cfg", "-m"])
def test_a_command_leaves_no_state_to_a_training_from_python(command, tiny, tmp_path, typed):
    assert command(main, *typed, *TINY_DATA, "trainer.max_epochs=1", f"runs_dir={tmp_path / 'command'}")[0] == 0
    run = Run(Path(train_command.train(tiny("trainer.max_epochs=1"))["run"]))
    assert run.path.parent == tmp_path / "runs" / "tiny", "a run of its own, and no job of the sweep before"
    run.results_file.unlink()
    assert train_command.train(tiny(f"resume='{run.path}'"))["run"] == str(run.path)


def test_a_run_through_the_command_line(command, tmp_path):
    folder = tmp_path / "it's (1), a=b"
    limits = ["trainer.limit_train_batches=3", "trainer.limit_val_batches=0.5"]
    status, out, err = command(main, *TINY_DATA, *limits, f"runs_dir={folder}", "trainer.max_epochs=1")
    assert (status, err) == (0, "")
    start, _, rest = out.partition(HEADER)
    # The folder of a test has a long name, which is wrapped.
    assert len(start.splitlines()) <= 15
    typed, *lines = start.splitlines()
    assert typed.startswith("python -m fashion_cnn.train data._target_=tiny_images.TinyDataModule ")
    text = " ".join(" ".join(lines).split())
    for part in ("trainer.max_epochs=1", "ResNet, ", ", 4 classes"):
        assert part in text
    assert "128 training images (48 of them per epoch), 32 validation images (20 of them used)" in text
    assert "all settings in config.yaml" in text
    assert "1/1 " in rest
    for part in ("train probe", "validation", "test", "gap train-test", "report.md"):
        assert part in out
    assert f"python -m fashion_cnn.analysis.dashboard --logdir {shlex.quote(str(folder))}\n" in out
    assert len(list(folder.rglob("results.json"))) == 1
    status, _, err = command(main, f"resume={next(folder.glob('tiny/*'))}")
    assert status == 1
    assert "finished" in err


def test_the_path_of_the_users_package_is_named_once_beside_the_next_commands(command, tmp_path, monkeypatch):
    arguments = [*TINY_DATA, f"runs_dir={tmp_path}", "trainer.max_epochs=1"]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(REPOSITORY), "tests"]))
    monkeypatch.chdir(REPOSITORY)
    _, out, _ = command(main, *arguments)
    hint = f"These commands find tiny_images with PYTHONPATH={REPOSITORY / 'tests'} in front of them."
    assert out.count("PYTHONPATH") == 1
    assert out.endswith(f"{hint}\n")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    assert python_path_of(["tiny_images", "nowhere"], tmp_path) is None, "it is found without"
    assert python_path_of(["fashion_cnn"], tmp_path) == str(REPOSITORY)
    assert python_path_of(["fashion_cnn"], REPOSITORY) is None, "python -m finds it in the present folder"


@pytest.mark.slow
def test_overrides_that_change_a_resumed_run_are_rejected(command, tmp_path, monkeypatch):
    from fashion_cnn.training import session

    def interrupted(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(session, "collect_results", interrupted)
        status, _, err = command(main, *TINY_DATA, f"runs_dir={tmp_path}", "trainer.max_epochs=1")
    assert status == 130
    assert "python -m fashion_cnn.train trust=tiny_images resume=" in err
    for override in ("trainer.max_epochs=5", "optimizer=sgd", "experiment=baseline", "~callbacks.ema"):
        status, _, err = command(main, "resume=latest", f"runs_dir={tmp_path}", override)
        assert status == 2
        assert "cannot change" in err
    status, out, err = command(main, "resume=latest", f"runs_dir={tmp_path}", "trainer.max_epochs=1")
    assert (status, err.count("\n")) == (0, 1), "which run it is, and nothing beside it"
    assert "  resuming   after epoch 1 of 1: the evaluation remains\n" in out


@pytest.fixture
def own_configs(tmp_path):
    """A folder with a group file of a user's own, beside the folder of the runs."""
    file = tmp_path / "my conf" / "model" / "own.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("network:\n  _target_: fashion_cnn.models.KerasCNN\n")
    return file.parent.parent


@pytest.fixture
def interrupted(monkeypatch):
    """A function that makes the trainings in its context stop before their evaluation."""
    from fashion_cnn.training import session

    def interrupt(*args):
        raise KeyboardInterrupt

    @contextmanager
    def stopping():
        with monkeypatch.context() as patch:
            patch.setattr(session, "collect_results", interrupt)
            yield

    return stopping


OWN = [*(part for part in TINY_DATA if not part.startswith("model")), "model=own", "trainer.max_epochs=1"]


def test_a_run_with_configs_of_the_user_resumes_anywhere(command, tmp_path, monkeypatch, own_configs, interrupted):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    with interrupted():
        status, _, err = command(main, "-cd", own_configs.name, *OWN, "runs_dir=all runs", "data.root=images")
    assert status == 130
    (typed,) = (line for line in err.splitlines() if "resume=" in line)
    *typed_words, resumed = shlex.split(typed)[3:]
    run = Run(tmp_path / resumed.removeprefix("resume="))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    # The command names the package of the class of the data.
    monkeypatch.delenv("FASHION_CNN_TRUST")
    monkeypatch.setattr(trust, "_typed_classes", set())
    own_configs.rename(tmp_path / "gone")
    roots = []
    data = build.data
    monkeypatch.setattr(build, "data", lambda config: roots.append(config.data.root) or data(config))
    status, out, err = command(main, *typed_words, f"resume='{run.path}'")
    assert (status, err) == (0, "")
    assert roots == [str(tmp_path / "images")]
    (line,) = (line for line in out.splitlines() if "go further" in line)
    words = shlex.split(line)
    assert words[words.index("--config-dir") + 1] == str(own_configs), "as an absolute path"
    assert f"dashboard --logdir '{tmp_path / 'all runs'}'\n" in out, "the runs are not below this directory"
    assert f"fashion_cnn.runs runs_dir='{tmp_path / 'all runs'}'\n" in out
    assert f"--config-dir '{own_configs}'" in run.model_card_file.read_text()


@pytest.mark.training
def test_a_sweep_with_configs_of_the_user_resumes_with_the_printed_command(
    command, tmp_path, monkeypatch, own_configs, interrupted
):
    with interrupted():
        status, out, _ = command(
            main, "-m", "--config-dir", str(own_configs), *OWN, f"runs_dir={tmp_path / 'runs'}", "seed=0,1"
        )
    assert status == 130
    typed = shlex.split(out.splitlines()[-1])[3:]
    monkeypatch.delenv("FASHION_CNN_TRUST")
    monkeypatch.setattr(trust, "_typed_classes", set())
    status, out, err = command(main, *typed)
    assert (status, err) == (0, "")
    assert "2 of 2 jobs finished" in out
    status, out, err = command(main, *typed, "seed=2")
    assert (status, err) == (0, "")
    assert "3 of 3 jobs finished" in out


@pytest.mark.parametrize(
    ("module", "argument", "message"),
    [
        ("evaluate", "model=tiny", "unknown option 'model' of fashion_cnn.evaluate."),
        ("predict", "shirt.jpg", "'shirt.jpg' has no key: type images=shirt.jpg."),
        ("compare", "runs/small", "type runs=runs/small."),
        ("export", "runs/small", "type run=runs/small."),
        ("__main__", "trian", "a dot. Did you mean python -m fashion_cnn.train?"),
        ("__main__", "predict", "Did you mean python -m fashion_cnn.predict?"),
        ("__main__", "model=tiny", "'model=tiny' is no argument here: the name of a command follows a dot. Type"),
    ],
)
def test_error_messages_name_the_options_of_the_command(command, tmp_path, monkeypatch, module, argument, message):
    monkeypatch.chdir(tmp_path)
    status, _, err = command(__import__(f"fashion_cnn.{module}", fromlist=["main"]).main, argument)
    assert status in (1, 2)
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["fashion_cnn.train", "--help"], ["fashion_cnn.runs"], ["fashion_cnn"]])
def test_closed_standard_output_ends_a_command_without_a_message(tmp_path, arguments):
    run = tmp_path / "runs" / "tiny" / "one"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("seed: 0\n")
    typed = [sys.executable, "-m", *arguments]
    read, write = os.pipe()
    os.close(read)
    ended = subprocess.run(typed, stdout=write, stderr=subprocess.PIPE, cwd=tmp_path, check=False)
    os.close(write)
    assert (ended.returncode, ended.stderr) == (141, b"")


def test_the_package_lists_its_commands_within_the_width_of_the_terminal(command, monkeypatch):
    texts = []
    for width in (80, 120):
        monkeypatch.setenv("COLUMNS", str(width))
        status, out, _ = command(list_commands.main)
        assert status == 0
        listed = re.findall(r"^  ([\w.]+) ", out, re.MULTILINE)
        assert listed == [*sorted(COMMANDS), "analysis.dashboard", "new"]
        assert max(map(len, out.splitlines())) <= width
        texts.append(" ".join(out.split()))
    assert texts[0] == texts[1], "nothing is cut off"
    assert "train Train a CNN on fashion images, monitor its train/val gap, test it once" in texts[0]


@pytest.mark.parametrize("module", ["compare", "evaluate", "predict", "explain", "export", "tune"])
def test_multirun_is_rejected_by_commands_other_than_train(command, tmp_path, monkeypatch, module):
    monkeypatch.chdir(tmp_path)
    main = __import__(f"fashion_cnn.{module}", fromlist=["main"]).main
    status, _, err = command(main, "runs_dir=a,b", "-m")
    assert status == 2
    assert f"leave it out of fashion_cnn.{module}" in err
    assert not list(tmp_path.iterdir())


def test_a_quoted_tilde_is_the_home_directory(command, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "none").mkdir()
    for module in ("runs.__main__", "evaluate", "predict"):
        main = __import__(f"fashion_cnn.{module}", fromlist=["main"]).main
        _, _, err = command(main, "runs_dir='~/none'", *(["images=x"] if module == "predict" else []))
        assert f"in {tmp_path / 'none'}" in err, module


def test_redirected_output_does_not_contain_the_progress_bar(monkeypatch, capsys):
    # Makes rich treat standard error as a terminal.
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress_bar("pictures") as progress:
        print("page.png")
        progress(1, 1)
    captured = capsys.readouterr()
    assert captured.out == "page.png\n"
    assert "pictures" in captured.err


def test_progress_is_a_line_every_half_minute_in_a_log(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with progress_bar("embedding") as progress:
        for completed, now[0] in ((1000, 10), (2000, 31), (3000, 59), (4000, 62)):
            progress(completed, 4000)
    assert capsys.readouterr().err == "embedding: 2,000 of 4,000 (50%)\nembedding: 4,000 of 4,000 (100%)\n"


def test_table_rows_are_not_wrapped_in_files_and_pipes(capsys):
    path, following = "photos/" + "deep/" * 300 + "shirt.jpg", ", ".join(f"class {number} 0.1%" for number in range(99))
    grid = Table("file", "next")
    grid.columns[0].overflow = "fold"
    grid.add_row(path, following)
    grid.add_row("shirt.jpg", "")
    wide_console().print(grid)
    lines = capsys.readouterr().out.splitlines()
    assert sum(path in line and following in line for line in lines) == 1
    assert len(lines) == 6


@pytest.mark.parametrize(
    ("width", "left_out"), [(40, "minutes, test. All are in a.csv."), (70, "minutes. All are in a.csv."), (90, "")]
)
def test_tables_leave_out_columns_instead_of_exceeding_the_terminal(monkeypatch, capsys, width, left_out):
    monkeypatch.setenv("COLUMNS", str(width))
    numbers = ("val", "test", "minutes")
    rows = [("runs/small/2026-11-29_08-29-28-9ea728", "94.66 (93.9 to 95.3)", "94.59", "9.1")]
    print_table(("run", *numbers), rows, right=numbers, optional=("minutes", "test"), hint="All are in a.csv.")
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines()[:-1])) <= width
    assert "94.66" in out, "numbers are not folded"
    assert " ".join(out.partition("Left out to fit")[2].split()).partition(": ")[2] == left_out


@pytest.mark.parametrize("width", range(40, 161, 20))
def test_tables_of_many_columns_fit_into_any_terminal(monkeypatch, capsys, width):
    monkeypatch.setenv("COLUMNS", str(width))
    texts = [f"a rather long setting {number}" for number in range(5)]
    numbers = [f"metric {number}, %" for number in range(9)]
    rows = [[*texts, *["94.66"] * 9]] * 2
    print_table([*texts, *numbers], rows, right=numbers, optional=numbers[3:])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= width


def test_no_word_of_a_table_is_broken_at_80_columns(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    settings = {"experiment": "regularised", "train_fraction": "0.05", "augmentation": "flip+crop+erasing"}
    numbers = ("val acc. %", "gap, points", "minutes")
    row = [*settings.values(), "underfitting", "87.88 ± 0.08", "11.01 ± 0.92", "2.0"]
    print_table([*settings, "verdict", *numbers], [row], right=numbers, optional=["minutes"], settings=[*settings])
    words = re.sub("[│┃]", " ", capsys.readouterr().out).split()
    assert {"settings", *(f"{name}={value}" for name, value in settings.items()), "underfitting"} <= {*words}
    print_table(["run", "val"], [["sweep/2026-11-29_08-29-28-9ea728/" + "lr-0.1_" * 9, "1"]], right=["val"])
    assert "sweep/2026-11-29_08-29-28-9ea728/ " in capsys.readouterr().out, "a path is folded between its folders"


def test_a_long_command_is_printed_once_above_the_advice(capsys):
    results = {"name": "a", "best_epoch": 1, "seconds": 1.0, "epochs": 1, "images_per_second": 1.0, "hardware": "a CPU"}
    results |= {
        "precision": "32",
        "parameters": 1,
        "multiply_adds": 1,
        "verdict": "overfitting",
        "verdict_rule": "rule",
    }
    config = OmegaConf.create({"runs_dir": "runs", "overrides": [f"data.root={'long/' * 20}", "seed=3"]})
    changes = [["remedy=cutmix"], ["-m", "remedy=none,cutmix"], ["seed=0,1"]]
    advice = [training_command(config, change) for change in changes]
    results |= {"advice": advice, "advice_reasons": ["a", "b", "c"]}
    print_end(results, Run(Path("runs/a")), config, brief=False)
    lines = capsys.readouterr().out.splitlines()
    assert f"  {training_command(config)}" in lines
    assert "    … remedy=cutmix" in lines
    assert "    … remedy=none,cutmix -m" in lines
    assert f"    {advice[2]}" in lines, "it replaces a word"


def test_a_job_of_a_sweep_ends_with_what_was_measured_and_its_verdict(capsys):
    results = {"name": "tiny", "best_epoch": 1, "verdict": "overfitting", "val/loss": 1.0, "val/accuracy": 0.5}
    results |= {"evaluation_lag": 0.25, "running/accuracy": 0.75}
    print_end(results, Run(Path("runs/x")), OmegaConf.create({}), brief=True)
    shown = " ".join(capsys.readouterr().out.split())
    assert "not measured" not in shown
    assert "Verdict: overfitting." in shown
    assert "accuracy was 75.0% on the augmented training batches and 50.0% on the train probe" in shown


def test_brackets_in_names_and_paths_are_printed_unchanged(capsys):
    grid = Table("boots [men]", title="[b]x[/b]")
    grid.add_row("boots [men] :smile:")
    wide_console().print(grid)
    results = {"name": "boots [men]", "best_epoch": 1, "seconds": 1.0, "epochs": 1, "images_per_second": 1.0}
    results |= {"precision": "32", "hardware": "a CPU", "parameters": 1, "multiply_adds": 1, "verdict": "overfitting"}
    results |= {"verdict_rule": "by the rule", "advice_reasons": ["more images"]}
    results |= {"advice": ["python -m fashion_cnn.train data.root=[/abs/path]"]}
    config = OmegaConf.create({"runs_dir": "runs", "overrides": []})
    print_end(results, Run(Path("runs/[/srv]")), config, brief=False)
    shown = capsys.readouterr().out
    assert (shown.count("boots [men]"), shown.count("[b]x[/b]")) == (3, 1)
    assert ":smile:" in shown
    assert "data.root=[/abs/path]" in shown
    assert "Run directory: runs/[/srv]\n" in shown


def test_garbage_collection_is_paused_for_a_block_and_left_as_it_was():
    states = []

    def fail():
        states.append(gc.isenabled())
        raise ImportError

    assert gc.isenabled()
    with pytest.raises(ImportError), paused_garbage_collection():
        fail()
    assert states == [False]
    assert gc.isenabled()
    gc.disable()
    try:
        with paused_garbage_collection():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
