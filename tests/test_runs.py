"""The run directory and the list of runs."""

import csv
import fcntl
import io
import os
import re
import subprocess
import sys
import threading

import pytest
from omegaconf import OmegaConf

from fashion_cnn import runs
from fashion_cnn.compare import main as compare_main
from fashion_cnn.errors import UserError
from fashion_cnn.runs import Run
from fashion_cnn.runs.__main__ import main
from fashion_cnn.runs.files import open_atomically


def make_run(path, started, **results):
    run = Run(path)
    run.create()
    run.write_config(OmegaConf.create({"name": path.parent.name, "seed": 3, "trainer": {"x": 1}}))
    os.utime(run.config_file, (started, started))
    if results:
        run.write_results({name.replace("__", "/"): value for name, value in results.items()})
    return run


@pytest.fixture
def three_runs(tmp_path):
    """An older finished run, a newer one in a sweep, and the newest, unfinished."""
    return [
        make_run(
            tmp_path / "small" / "one",
            100,
            test__accuracy=0.9,
            val__accuracy=0.91,
            gap__accuracy=0.02,
            seconds=60,
            seed=3,
        ),
        make_run(tmp_path / "sweep" / "time" / "lr-0.1", 200, test__accuracy=0.8),
        make_run(tmp_path / "small" / "three_runs", 300),
    ]


def test_runs_are_listed_at_any_depth_oldest_first(three_runs, tmp_path):
    assert runs.list_runs(tmp_path) == three_runs


@pytest.mark.parametrize("text", ["- a list\n", "{ no yaml", "other: program\n"])
def test_the_config_of_another_program_is_not_listed(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    assert runs.list_runs(tmp_path) == []


def test_latest_is_the_newest_finished_or_unfinished_run(three_runs, tmp_path):
    assert runs.find_run("latest", tmp_path) == three_runs[1]
    assert runs.find_unfinished_run("latest", tmp_path) == three_runs[2]


def test_a_process_that_reads_the_state_delays_training_and_does_not_disturb_other_readers(three_runs):
    with (three_runs[2].path / ".lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        assert three_runs[2].state == "stopped"
        release = threading.Timer(0.2, fcntl.flock, (file, fcntl.LOCK_UN))
        release.start()
        with three_runs[2].locked():
            assert three_runs[2].state == "running"
        release.join()


def test_the_lock_ends_with_a_process_that_is_killed(three_runs):
    code = (
        "import sys; from pathlib import Path; from fashion_cnn.runs import Run\n"
        "with Run(Path(sys.argv[1])).locked(): print('locked', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, three_runs[2].path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "locked\n"
        assert three_runs[2].state == "running"
        with pytest.raises(UserError, match="is being trained by another process"), three_runs[2].locked():
            pass
        process.kill()
    assert three_runs[2].state == "stopped"


def test_latest_unfinished_skips_runs_in_training(three_runs, tmp_path):
    with three_runs[2].locked(), pytest.raises(UserError, match="no unfinished run"):
        runs.find_unfinished_run("latest", tmp_path)


def test_a_missing_run_raises_with_the_newest_runs(three_runs, tmp_path):
    with pytest.raises(UserError, match="does not exist") as caught:
        runs.find_run(tmp_path / "smal", tmp_path)
    assert str(three_runs[2].path) in str(caught.value)
    with pytest.raises(UserError, match="is not a run"):
        runs.find_run(tmp_path, tmp_path)
    with pytest.raises(UserError, match="no finished run"):
        runs.find_run("latest", tmp_path / "empty")


def test_latest_and_unfinished_runs_are_reported_on_stderr(three_runs, tmp_path, capsys):
    runs.find_run("latest", tmp_path)
    runs.find_unfinished_run("latest", tmp_path)
    runs.find_run(three_runs[0].path, tmp_path)
    runs.find_run(three_runs[2].path, tmp_path)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        f"The newest finished run: {three_runs[1].path}",
        f"The newest unfinished run: {three_runs[2].path}",
        f"{three_runs[2].path} is not finished (stopped): its weights are not final.",
    ]


def test_latest_unfinished_skips_trials_of_a_search(three_runs, tmp_path):
    make_run(tmp_path / "tune" / "tiny" / "trial-0000", 400)
    (tmp_path / "tune" / "tiny" / "study.db").touch()
    assert runs.find_unfinished_run("latest", tmp_path) == three_runs[2]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("results.json", '{"a": ', "results.json is damaged"),
        ("results.json", "[]", "results.json is damaged"),
        ("config.yaml", 'seed: 3\n{"a": ', "config.yaml is damaged"),
        ("config.yaml", "name: sma", "config.yaml is damaged"),
        ("config.yaml", "", "config.yaml is damaged"),
    ],
)
def test_a_damaged_run_is_reported_in_one_line_and_hides_no_other(three_runs, tmp_path, command, file, text, message):
    damaged = three_runs[1].path / file
    damaged.write_text(text)
    os.utime(three_runs[1].config_file, (200, 200))
    assert runs.list_runs(tmp_path) == three_runs
    assert three_runs[1].state == "damaged"
    assert runs.find_run("latest", tmp_path) == three_runs[0]
    for find in (runs.find_run, runs.find_finished_run):
        with pytest.raises(UserError, match=message) as caught:
            find(three_runs[1].path, tmp_path)
        assert "\n" not in str(caught.value)
    status, out, err = command(main, f"runs_dir={tmp_path}")
    assert (status, err) == (0, "")
    assert out.count("damaged") == 1
    assert "90.00" in out
    status, out, err = command(compare_main, f"runs={tmp_path}")
    assert (status, err) == (0, "")
    assert f"lr-0.1: damaged ({three_runs[1].path / file}" in out


def test_writing_results_removes_the_error_and_temporary_files(tmp_path):
    run = make_run(tmp_path / "a" / "b", 100)
    run.error_file.write_text("it failed")
    assert run.state == "failed"
    run.write_results({"seed": 1})
    assert run.results() == {"seed": 1}
    assert {path.name for path in run.path.iterdir()} == {"config.yaml", "results.json", ".lock"}


def test_an_error_while_writing_keeps_the_former_content_and_no_partial_file(tmp_path):
    file = tmp_path / ("a" * 255)
    runs.write_atomically(file, "before")

    def write_half():
        with open_atomically(file) as partial:
            partial.write(b"aft")
            raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_half()
    assert file.read_text() == "before"
    assert list(tmp_path.iterdir()) == [file]


def test_runs_started_in_the_same_second_get_different_directories(tmp_path):
    assert len({runs.new_run(tmp_path, "small").path for _ in range(100)}) == 100


def test_an_unwritable_directory_raises(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="runs_dir"):
        Run(tmp_path / "file" / "run").create()


@pytest.mark.parametrize("width", [80, 120])
def test_the_list_shows_what_differs_the_verdict_and_the_reason_of_a_failure(tmp_path, command, monkeypatch, width):
    common = {"seed": 3, "trainer": {"max_epochs": 2}}
    for number, (overrides, rate) in enumerate([("seed=1", 0.1), ("seed=2", 0.1), ("seed=2", 0.2)]):
        run = make_run(tmp_path / "small" / f"2026-11-29_08-29-28-9ea72{number}", 100 * number)
        config = {**common, "overrides": ["model=small", overrides], "optimizer": {"lr": rate}}
        run.write_config(OmegaConf.create(config))
        os.utime(run.config_file, (number, number))
        if number == 0:
            metrics = {"val/accuracy": 0.9, "test/accuracy": 0.89, "gap/accuracy": 0.021, "seconds": 90}
            run.write_results({"verdict": "underfitting", **metrics})
        if number == 1:
            run.error_file.write_text("UserError: The loss became nan at step 7, and so on\nmore")
    monkeypatch.setenv("COLUMNS", str(width))
    status, out, err = command(main, f"runs_dir={tmp_path}")
    assert (status, err) == (0, "")
    assert max(map(len, out.splitlines())) <= width
    text = " ".join(re.sub("[│┃]", " ", out).split())
    for part in ("underfitting", "90.00", "+2.10", "seed=1", "failed", "The loss became nan", "optimizer.lr=0.2"):
        assert part in text
    assert "model=small" not in text, "which all have in common"
    assert "trainer.max_epochs" not in text
    status, out, _ = command(main, f"runs_dir={tmp_path}", "format=csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["state"] for row in rows] == ["finished", "failed", "stopped"]
    assert [row["optimizer.lr"] for row in rows] == ["0.1", "0.1", "0.2"]
    assert rows[0]["val/accuracy"] == "0.9"
    assert rows[1]["reason"] == "UserError: The loss became nan at step 7, and so on"


def test_the_command_lists_runs(three_runs, tmp_path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, _ = command(main, f"runs_dir={tmp_path}")
    assert status == 0
    lines = [line for line in out.splitlines() if "small" in line or "sweep" in line]
    assert [("90.00" in line, "finished" in line, "stopped" in line) for line in lines] == [
        (True, True, False),
        (False, True, False),
        (False, False, True),
    ]
    assert "+2.00" in lines[0]
    status, _, err = command(main, f"runs_dir={tmp_path / 'nothing'}")
    assert status == 1
    assert err.startswith("error: There are no runs")
    assert not (tmp_path / "outputs").exists()
