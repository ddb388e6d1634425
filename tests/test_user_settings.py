"""Settings of the user in ~/.config/fashion_cnn: above the defaults, below the command line."""

import pytest
from conftest import TINY_DATA

from fashion_cnn import evaluate, train
from fashion_cnn import runs as run_directories
from fashion_cnn.cli.errors import default_config
from fashion_cnn.cli.main import CONFIG_DIR, compose
from fashion_cnn.cli.user_settings import user_folder
from fashion_cnn.errors import UserError


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Return a function that writes a file of settings of the user."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "config" / "fashion_cnn").mkdir(parents=True)

    def write(text, name="settings.yaml"):
        file = tmp_path / "config" / "fashion_cnn" / name
        file.write_text(text)
        return file

    return write


def test_the_folder_follows_the_standard_for_desktops(monkeypatch, tmp_path):
    """XDG Base Directory Specification: an unset or empty variable means ~/.config."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", "")
    assert user_folder() == tmp_path / ".config" / "fashion_cnn"
    monkeypatch.setenv("XDG_CONFIG_HOME", "/elsewhere")
    assert str(user_folder()) == "/elsewhere/fashion_cnn"


def test_settings_are_above_the_defaults_and_below_the_command_line(write):
    write("data:\n  root: /images\nlogger: wandb\n")
    write("runs_dir: /runs\n", "more.yaml")
    config = compose()
    assert (config.data.root, config.runs_dir, "wandb" in config.logger) == ("/images", "/runs", True)
    assert compose("tune").runs_dir == compose("evaluate").runs_dir == "/runs"
    assert (compose("compare").runs, compose("memorisation").runs) == ("/runs", "/runs/memorisation")
    assert compose("memorisation", ["runs_dir=here"]).runs == "here/memorisation"
    assert compose("evaluate").data.root is None, "a run knows its own data"
    config = compose("train", ["data.root=other", "runs_dir=here", "logger=default"])
    assert (config.data.root, config.runs_dir, "wandb" in config.logger) == ("other", "here", False)


def test_a_folder_of_pictures_is_never_that_of_the_settings(write):
    write("data.root: /images\n")
    assert compose("train", ["data=kmnist"]).data.root == "/images"
    assert compose("train", ["data=image_folder"]).data.root != "/images"


def test_a_file_that_is_too_large_is_refused(write):
    file = write("runs_dir: /runs\n" + "# much text\n" * 10_000)
    with pytest.raises(UserError, match=f"{file} has more than 100,000 bytes"):
        compose()


def test_without_a_file_nothing_changes(write):
    before = compose()
    file = write("runs_dir: /runs\n")
    assert compose() != before
    file.unlink()
    assert compose() == before


@pytest.mark.parametrize(
    "arguments", [["--cfg", "all"], ["--cfg", "all", "seed=1"], ["seed=1", "--cfg", "all"]], ids=" ".join
)
def test_cfg_shows_the_settings_and_the_launcher(write, command, arguments):
    write("hydra/launcher: joblib\nhydra.launcher.n_jobs: 2\nruns_dir: /runs\n")
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    status, out, err = command(train.main, *arguments)
    assert (status, err) == (0, "")
    assert "JoblibLauncher" in out
    assert "    n_jobs: 2\n" in out
    assert "runs_dir: /runs\n" in out
    _, out, _ = command(
        train.main, *arguments[:2] if arguments[0] == "--cfg" else arguments[1:], "hydra/launcher=basic"
    )
    assert "JoblibLauncher" not in out


def test_a_run_does_not_repeat_the_settings_as_typed(write, command, tmp_path):
    write(f"runs_dir: {tmp_path / 'own'}\nlogger: default\n")
    status, out, err = command(train.main, *TINY_DATA, "trainer.max_epochs=1")
    assert (status, err) == (0, "")
    assert "runs_dir" not in out.splitlines()[0]
    assert "logger" not in out.splitlines()[0]
    (run,) = run_directories.find_runs(str(tmp_path / "own"))
    assert run.state == "finished"
    assert not [override for override in run.config().overrides if override.startswith(("runs_dir", "logger"))]


def test_the_newest_sweep_is_looked_for_in_the_folder_of_the_settings(write, command, tmp_path):
    write(f"runs_dir: {tmp_path / 'own'}\n")
    folder = tmp_path / "own" / "sweep" / "2026-01-31_12-00-00-abc123"
    folder.mkdir(parents=True)
    (folder / "multirun.yaml").write_text("damaged")
    assert command(train.main, "-m", "resume=latest")[2].startswith(f"error: {folder / 'multirun.yaml'}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run_dir: /runs", "run_dir is no setting of a user. Did you mean runs_dir? Choose data.root, runs_dir,"),
        ("optimizer.lr: 0.1", "optimizer.lr is no setting of a user."),
        ("runs_dir: runs", "runs_dir=runs depends on the folder of a command: give an absolute path."),
        ("runs_dir: [1]", "runs_dir=[1] is not possible: give a text."),
        ("logger: wandbb", "there is no logger=wandbb: choose comet, default, "),
        ("runs_dir: 'open", "cannot be read: "),
        ("- a list", "holds no settings"),
        ("a: ${b}", "a is no setting of a user."),
    ],
)
def test_a_mistake_is_reported_with_the_name_of_the_file(write, command, text, message):
    file = write(text)
    for main in (train.main, evaluate.main):
        status, out, err = command(main, "--cfg", "job")
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert err.startswith(f"error: {file}")
        assert message in err
    with pytest.raises(UserError, match=r"settings\.yaml"):
        compose()


def test_a_setting_in_two_files_is_refused(write):
    write("runs_dir: /a\n", "one.yaml")
    write("runs_dir: /b\n", "two.yaml")
    with pytest.raises(UserError, match=r"two.yaml: runs_dir is set in .*one.yaml, too"):
        compose()


def test_the_settings_do_not_count_as_changes_of_the_default(write):
    write("runs_dir: /runs\n")
    compose()
    assert default_config("train", str(CONFIG_DIR))[0].runs_dir == "/runs"
