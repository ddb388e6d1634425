"""The run directory and the list of runs."""

import csv
import fcntl
import importlib
import io
import json
import math
import os
import re
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import REPOSITORY
from omegaconf import OmegaConf

from fashion_cnn import runs
from fashion_cnn.compare import main as compare_main
from fashion_cnn.errors import UserError
from fashion_cnn.runs import Run
from fashion_cnn.runs.__main__ import main
from fashion_cnn.runs.files import open_atomically


def yaml_bomb(first, level):
    """A config whose aliases stand for a billion entries."""
    levels = "".join(f"a{number + 1}: &a{number + 1} {level.format(f'a{number}')}\n" for number in range(12))
    return f"seed: 1\na0: &a0 {first}\n{levels}"


def reference_bomb(level):
    """A config whose references stand for a billion entries."""
    return "seed: 1\na0: text\n" + "".join(f"a{number + 1}: {level.format(f'a{number}')}\n" for number in range(20))


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


@pytest.mark.slow
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


def test_latest_does_not_resume_a_run_that_is_older_than_a_finished_one(three_runs, tmp_path):
    finished = make_run(tmp_path / "small" / "newer", 400, val__accuracy=0.9)
    with pytest.raises(UserError, match="is finished") as caught:
        runs.find_unfinished_run("latest", tmp_path)
    assert str(finished.path) in str(caught.value)
    assert f"python -m fashion_cnn.train resume={three_runs[2].path}" in str(caught.value)


def test_a_missing_run_raises_with_the_newest_runs(three_runs, tmp_path):
    with pytest.raises(UserError, match="does not exist") as caught:
        runs.find_run(tmp_path / "smal", tmp_path)
    assert f"\n  {three_runs[2].path} (stopped)\n  {three_runs[1].path}\n" in str(caught.value)
    three_runs[2].write_error("The loss became nan")
    with pytest.raises(UserError, match=r"three_runs \(failed\)\n"):
        runs.find_run(tmp_path / "smal", tmp_path)
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


def test_latest_skips_trials_of_a_search(three_runs, tmp_path):
    make_run(tmp_path / "tune" / "tiny" / "trial-0000", 400)
    make_run(tmp_path / "tune" / "tiny" / "trial-0001", 500, val__accuracy=0.9)
    renamed = make_run(tmp_path / "elsewhere" / "study" / "first", 600, val__accuracy=0.9)
    (renamed.path.parent / "study.db").touch()
    assert runs.find_unfinished_run("latest", tmp_path) == three_runs[2]
    assert runs.find_run("latest", tmp_path) == three_runs[1]
    with pytest.raises(UserError, match=r"no finished run in .*, trials of searches aside: give its directory"):
        runs.find_run("latest", tmp_path / "tune")


def test_latest_follows_the_recorded_time_of_copied_runs(tmp_path):
    now = time.time()
    named = [
        make_run(tmp_path / "small" / f"2026-11-{day:02}_10-00-00-abcdef", now - day, seconds=60) for day in (3, 12, 7)
    ]
    job = make_run(tmp_path / "sweep" / "time" / "lr-1", now, seconds=60, finished="2026-11-05T10:00:00+00:00")
    assert runs.list_runs(tmp_path) == [named[0], job, named[2], named[1]]
    assert runs.find_run("latest", tmp_path) == named[1]
    # No time of the calendar.
    invalid = make_run(tmp_path / "small" / "2026-11-99_10-00-00-abcdef", now, seconds=60)
    assert runs.find_run("latest", tmp_path) == invalid


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("results.json", '{"a": ', "results.json is damaged"),
        ("results.json", "[]", "results.json is damaged"),
        ("results.json", "null", "results.json is damaged"),
        ("results.json", '"text"', "results.json is damaged"),
        ("results.json", "{}", "results.json is damaged"),
        ("results.json", "[" * 100_000, "results.json is damaged"),
        ("results.json", '{"a": ' * 100_000, "results.json is damaged"),
        ("results.json", '{"seed": 3, "test/accuracy": "0.9"}', r"damaged \(test/accuracy is '0.9', no number\)"),
        ("results.json", '{"seed": 3, "test/accuracy": null}', "results.json is damaged"),
        ("results.json", '{"seed": 3, "gap/accuracy": true}', "results.json is damaged"),
        ("results.json", '{"seed": [3], "seconds": 60}', "results.json is damaged"),
        ("results.json", '{"seed": 3, "seconds": 1' + "0" * 400 + "}", "results.json is damaged"),
        ("results.json", '{"seed": 3, "seconds": 1' + "0" * 9000 + "}", "results.json is damaged"),
        ("results.json", " " * 10_000_001, r"damaged \(it is larger than 10 MB\)"),
        ("results.json", b"\xff\xfe{}", r"damaged \(it is no text\)"),
        ("config.yaml", 'seed: 3\n{"a": ', "config.yaml is damaged"),
        ("config.yaml", "name: sma", "config.yaml is damaged"),
        ("config.yaml", "", "config.yaml is damaged"),
        ("config.yaml", "seed: text", "config.yaml is damaged"),
        ("config.yaml", "seed: 1\noverrides: 3", r"damaged \(overrides is no list of texts\)"),
        ("config.yaml", "seed: 1\noverrides: [3]", r"damaged \(overrides is no list of texts\)"),
        ("config.yaml", b"seed: 1\nname: \xff\xfe", r"damaged \(it is no text\)"),
        ("config.yaml", b"seed: 1\n\0\1\2", "config.yaml is damaged"),
        ("config.yaml", "seed: 1\na: &a [*a]\n", r"damaged \(it has a YAML alias in line 2\)"),
        ("config.yaml", yaml_bomb("[x, x]", "[*{0}, *{0}, *{0}, *{0}, *{0}, *{0}, *{0}, *{0}]"), "YAML alias"),
        ("config.yaml", yaml_bomb("{x: y}", "{{<<: *{0}, z: *{0}}}"), "YAML alias"),
        ("config.yaml", "seed: 1\na: " + "[" * 50_000, "nest"),
        ("config.yaml", "seed: 1\na: " + "{b: " * 50_000, "it is nested more than 30 levels deep"),
        ("config.yaml", "seed: 1\n" + "- " * 50_000, "config.yaml is damaged"),
        ("config.yaml", "seed: 1\na: [" + "1," * 30_000 + "]", "more than 20,000 entries"),
        ("config.yaml", "seed: 1\na: " + "b" * 1_000_000, "larger than 1 MB"),
        ("config.yaml", "seed: 1" + "0" * 9000, "config.yaml is damaged"),
        ("config.yaml", "seed: 1\nname: ${name}", r"damaged \(name refers to itself\)"),
        ("config.yaml", "seed: 1\nname: ${data.x}\ndata: {x: '${name}'}", "refers to itself"),
        ("config.yaml", "seed: 1\ndata: {x: '${data}'}", "refers to itself"),
        ("config.yaml", "seed: 1\na: {b: '${..c}'}\nc: {d: '${.d}'}", "refers to itself"),
        ("config.yaml", reference_bomb("${{{0}}}${{{0}}}${{{0}}}${{{0}}}"), "make it too large"),
        ("config.yaml", reference_bomb("${{oc.decode:'${{{0}}}${{{0}}}${{{0}}}${{{0}}}'}}"), "make it too large"),
        ("config.yaml", reference_bomb("{{x: '${{{0}}}', y: '${{{0}}}', z: '${{{0}}}'}}"), "make it too large"),
        (
            "config.yaml",
            "seed: 1\n" + "".join(f"a{n}: ${{a{n + 1}}}\n" for n in range(5000)) + "a5000: 1",
            "1,000 references",
        ),
        ("config.yaml", "seed: 1\na: !!timestamp 2001-99-99", "config.yaml is damaged"),
        ("config.yaml", "seed: 1\na: !!python/object/apply:os.getcwd []", "config.yaml is damaged"),
    ],
)
def test_a_damaged_run_is_reported_in_one_line_and_hides_no_other(three_runs, tmp_path, command, file, text, message):
    damaged = three_runs[1].path / file
    damaged.write_bytes(text if isinstance(text, bytes) else text.encode())
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


@pytest.mark.parametrize("file", ["config.yaml", "results.json", "error.txt", ".lock"])
@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_files_that_would_block_are_not_opened(three_runs, tmp_path, command, file, make):
    unusual = three_runs[2].path / file
    unusual.unlink(missing_ok=True)
    make(unusual)
    status, out, err = command(main, f"runs_dir={tmp_path}")
    assert (status, err) == (0, "")
    assert "90.00" in out
    assert command(compare_main, f"runs={tmp_path}")[0] == 0
    state = {"error.txt": "failed", ".lock": "stopped"}.get(file, "damaged")
    assert three_runs[2].state == state
    assert runs.find_run("latest", tmp_path) == three_runs[1]


def link_to_itself(path):
    path.symlink_to(path)


def link_elsewhere(path):
    path.symlink_to(path.with_name("elsewhere"))


@pytest.mark.parametrize("make", [Path.mkdir, link_to_itself, link_elsewhere])
def test_a_lock_that_is_no_file_is_refused_in_one_message(three_runs, tmp_path, make):
    lock = three_runs[2].path / ".lock"
    lock.unlink(missing_ok=True)
    make(lock)
    three_runs[2].create()
    with pytest.raises(UserError, match=f"^{lock} is not a regular file: delete it, and run"), three_runs[2].locked():
        pass
    assert not lock.with_name("elsewhere").exists()
    lock.rmdir() if lock.is_dir() and not lock.is_symlink() else lock.unlink()
    with three_runs[2].locked():
        assert three_runs[2].state == "running"


@pytest.mark.parametrize("entry", ["report.md", "figures", "projector/tensors.tsv", ".lock", "checkpoints/last.ckpt"])
@pytest.mark.parametrize("target", ["thesis", "missing"])
def test_a_run_with_a_link_that_leads_out_of_it_is_not_resumed(three_runs, tmp_path, entry, target):
    (tmp_path / "thesis").mkdir()
    run = three_runs[2]
    run.path.rename(tmp_path / "moved")
    run.path.symlink_to(tmp_path / "moved")  # a run on another disk
    (run.path / "inside").symlink_to("config.yaml")
    run.create()
    link = run.path / entry
    link.unlink(missing_ok=True)
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(tmp_path / target)
    with pytest.raises(UserError, match=f"^{link} is a link that leads out of {run.path}, to {tmp_path / target}: "):
        run.create()
    assert not (tmp_path / "missing").exists()


@pytest.mark.parametrize(
    ("name", "folder", "arguments"),
    [
        ("evaluate", "evaluation", []),
        ("evaluate", "evaluation/test", []),
        ("export", "export", []),
        ("evaluate_search", "search_evaluation/test", []),
        ("teach", "concepts", ["name=red", "images=."]),
        ("index", "catalogue", []),
        ("index", "catalogue/products.lance/data", []),
        ("explain", "explained", [f"images={REPOSITORY / 'docs'}"]),
    ],
)
def test_no_command_writes_through_a_link_in_a_run(three_runs, tmp_path, command, name, folder, arguments):
    (tmp_path / "victim").mkdir()
    link = three_runs[0].path / folder
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(tmp_path / "victim")
    main = importlib.import_module(f"fashion_cnn.{name}").main
    status, _, err = command(main, f"run={three_runs[0].path}", *arguments)
    assert status == 1
    assert f"{link} is a link that leads out of" in err
    assert not list((tmp_path / "victim").iterdir())


def test_escape_sequences_in_the_files_of_a_run_do_not_reach_the_terminal(three_runs, tmp_path, command):
    title = "\x1b]0;title\x07\x9b2J"
    three_runs[0].write_config(OmegaConf.create({"name": title, "seed": 3, "optimizer": {"lr": title}}))
    three_runs[1].config_file.write_text('"\\u001b[2J": &a [*a]')
    three_runs[2].write_error(title)
    for tool, arguments in ((main, [f"runs_dir={tmp_path}"]), (compare_main, [f"runs={tmp_path}"])):
        status, out, err = command(tool, *arguments)
        assert status == 0
        assert "\\x1b]0;title" in out
        assert not set(out + err) & set("\x1b\x07\x9b")
    assert str(UserError(f"{title}\n\t日本 语 é 👩‍🔬")) == "\\x1b]0;title\\x07\\x9b2J\n\t日本 语 é 👩‍🔬"


def test_numbers_of_a_diverged_run_are_listed(three_runs, tmp_path, command):
    # Older versions wrote NaN and infinity.
    results = {"seed": 3, "test/accuracy": float("nan"), "val/loss": float("inf")}
    three_runs[1].results_file.write_text(json.dumps(results))
    assert three_runs[1].state == "finished"
    status, out, _ = command(main, f"runs_dir={tmp_path}")
    assert status == 0
    assert "nan" in out


def test_numbers_that_json_lacks_are_null_in_the_file_and_not_a_number_when_read(three_runs):
    gains = {"longer": {"value": float("nan"), "bounds": [float("-inf"), 0.5]}}
    three_runs[1].write_results({"seed": 3, "gap_last/share_low": float("-inf"), "expected_gains": gains})

    def refuse(constant):
        raise ValueError(constant)

    stored = json.loads(three_runs[1].results_file.read_text(), parse_constant=refuse)
    nested = {"longer": {"value": None, "bounds": [None, 0.5]}}
    assert stored == {"seed": 3, "gap_last/share_low": None, "expected_gains": nested}
    results = three_runs[1].results()
    assert math.isnan(results.pop("gap_last/share_low"))
    assert results == {"seed": 3, "expected_gains": nested}


def test_references_within_a_config_are_kept(tmp_path):
    run = make_run(tmp_path / "small" / "one", 100)
    run.write_config(OmegaConf.create({"seed": 3, "data": {"seed": "${seed}", "other": "${.seed}"}, "a": "${data}"}))
    assert run.state == "stopped"
    assert run.config().a.other == 3


def test_a_config_with_a_reference_to_nothing_is_left_out_of_a_comparison(three_runs, tmp_path, command):
    for text in ("${nothing}", "${unknown:1}"):
        three_runs[1].write_config(OmegaConf.create({"name": text, "seed": 3, "optimizer": {"lr": text}}))
        status, out, err = command(main, f"runs_dir={tmp_path}")
        assert (status, err) == (0, "")
        assert "90.00" in out
        status, out, err = command(compare_main, f"runs={tmp_path}")
        assert (status, err) == (0, "")
        assert "Left out" in out
        assert "lr-0.1" in out


def test_a_directory_killed_before_its_config_was_written_is_listed_as_empty(three_runs, tmp_path, command):
    before = ([], [".lock"], [".lock", "training_images.npy", ".config.yaml-0123456789ab.partial"])
    for count, files in enumerate(before, start=1):
        empty = runs.new_run(tmp_path, "small")
        empty.path.mkdir()
        for name in files:
            (empty.path / name).touch()
        assert empty in runs.list_runs(tmp_path, "empty")
        status, out, err = command(main, f"runs_dir={tmp_path}")
        assert (status, err) == (0, "")
        assert out.count("empty") == count
        assert command(compare_main, f"runs={tmp_path}")[0] == 0
        assert runs.find_unfinished_run("latest", tmp_path) == three_runs[2]
        with pytest.raises(UserError, match="Delete it, and start again"):
            runs.find_unfinished_run(empty.path, tmp_path)
        with pytest.raises(UserError, match="Delete it, and start again"):
            runs.find_run(empty.path, tmp_path)


def test_a_run_without_its_config_is_damaged(three_runs, tmp_path):
    three_runs[0].config_file.unlink()
    assert three_runs[0] in runs.list_runs(tmp_path, "damaged")
    with pytest.raises(UserError, match=r"config.yaml is damaged \(it is missing\)"):
        runs.find_run(three_runs[0].path, tmp_path)


def test_settings_that_no_command_could_read_are_refused(tmp_path):
    run = Run(tmp_path / "run")
    run.create()
    with pytest.raises(UserError, match="larger than 1 MB"):
        run.write_config(OmegaConf.create({"seed": 1, "names": "a" * 1_000_001}))
    assert not run.config_file.exists()


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


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
@pytest.mark.parametrize("mode", ["w", "wb"])
def test_files_have_the_permissions_of_the_umask(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        with open_atomically(tmp_path / "file", mode):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~umask


def test_partial_files_of_a_killed_process_are_removed_and_those_in_use_are_kept(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from fashion_cnn.runs.files import open_atomically\n"
        "with open_atomically(Path(sys.argv[1])) as file: print('open', flush=True); sys.stdin.read()"
    )
    run = make_run(tmp_path / "run", 100)
    files = (run.results_file, run.path / "examples.csv")
    commands = [[sys.executable, "-c", code, str(file)] for file in files]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for command in commands]
    for process in processes:
        assert process.stdout.readline() == b"open\n"
    run.create()
    runs.write_atomically(files[0], "{}")
    assert len(list(run.path.glob(".*.partial"))) == 2, "both are in use"
    for process in processes:
        process.kill()
        process.communicate()
    runs.write_atomically(files[0], "{}")
    (left,) = run.path.glob(".*.partial")
    assert left.name.startswith(".examples.csv-")
    (run.path / ".config.yaml-abcdefgh.partial").touch()
    run.create()
    assert [path.name for path in run.path.glob(".*.partial")] == [".config.yaml-abcdefgh.partial"], (
        "of another machine"
    )
    os.utime(run.path / ".config.yaml-abcdefgh.partial", (0, 0))
    run.create()
    assert not list(run.path.glob(".*.partial"))


def test_concurrent_writers_of_one_file_disturb_each_other_never(tmp_path):
    contents = [str(number) * 5000 for number in range(8)]
    errors = []

    def write(content):
        try:
            for _ in range(40):
                runs.write_atomically(tmp_path / "file", content)
        except OSError as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert (tmp_path / "file").read_text() in contents
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_names_the_file_and_leaves_no_partial_file(tmp_path):
    code = (
        "import resource, sys; from pathlib import Path; from fashion_cnn.runs import write_atomically\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: write_atomically(Path(sys.argv[1]), 'a' * 100_000)\n"
        "except OSError as error: print(error.filename, end='')"
    )
    file = tmp_path / "results.json"
    output = subprocess.run([sys.executable, "-c", code, file], check=True, capture_output=True, text=True).stdout
    assert output == str(file)
    assert list(tmp_path.iterdir()) == []


def test_runs_started_in_the_same_second_get_different_directories(tmp_path):
    assert len({runs.new_run(tmp_path, "small").path for _ in range(100)}) == 100


def test_an_unwritable_directory_raises(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="runs_dir"):
        Run(tmp_path / "file" / "run").create()


@pytest.mark.parametrize("width", [80, 120])
def test_the_list_shows_what_differs_the_verdict_and_the_reason_of_a_failure(tmp_path, command, monkeypatch, width):
    common = {"trainer": {"max_epochs": 2}}
    for number, (overrides, rate) in enumerate([("seed=1", 0.1), ("seed=2", 0.1), ("seed=2", 0.2)]):
        run = make_run(tmp_path / "small" / f"2026-11-29_08-29-28-9ea72{number}", 100 * number)
        typed = ["model=small", overrides, *["trainer.max_epochs=2"][:number]]
        config = {**common, "overrides": typed, "optimizer": {"lr": rate}, "seed": int(overrides[-1])}
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
    for part in ("underfitting", "90.00", "+2.10", "seed=1", "failed", "The loss became nan", " lr=0.2"):
        assert part in text
    assert out.startswith("Settings of all runs: model=small"), "which are not repeated"
    assert text.count("model=small") == 1
    assert text.count("max_epochs") == 1, "the first run has the same number of epochs"
    status, out, _ = command(main, f"runs_dir={tmp_path}", "format=csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["state"] for row in rows] == ["finished", "failed", "stopped"]
    assert [row["optimizer.lr"] for row in rows] == ["0.1", "0.1", "0.2"]
    assert rows[0]["val/accuracy"] == "0.9"
    assert rows[1]["reason"] == "UserError: The loss became nan at step 7, and so on"


@pytest.mark.parametrize("width", [80, 120])
def test_jobs_of_a_sweep_are_listed_below_it_without_repeating_their_settings(tmp_path, command, monkeypatch, width):
    shared = ["model=tiny", "data.val_size=500", "trainer.max_epochs=4"]
    folder = tmp_path / "sweep" / "2026-11-29_17-23-48-06985c"
    for rate in (0.002, 0.008):
        for seed in (0, 1):
            run = make_run(folder / f"lr-{rate}_seed-{seed}", 0)
            overrides = [*shared, f"optimizer.lr={rate}", f"seed={seed}"]
            run.write_config(OmegaConf.create({"overrides": overrides, "optimizer": {"lr": rate}, "seed": seed}))
            run.write_results({"verdict": "undecided", "val/accuracy": 0.9, "gap/accuracy": 0.02, "seconds": 9})
    other = make_run(tmp_path / "small" / "2026-11-29_17-20-00-06985d", 0)
    other.write_config(OmegaConf.create({"overrides": [], "optimizer": {"lr": 0.1}, "seed": 0}))
    monkeypatch.setenv("COLUMNS", str(width))
    status, out, _ = command(main, f"runs_dir={tmp_path}")
    assert status == 0
    assert out.count("max_epochs=4") == 1
    (jobs,) = {
        sum(f"lr-{rate}_seed-" in line and "90.00" in line for line in out.splitlines()) for rate in (0.002, 0.008)
    }
    assert jobs == 2
    assert "lr=0.002" not in out, "the name of the job has it"
    table = [line for line in out.splitlines() if line.startswith("│")]
    assert len(table) <= 5 + 1 + 3, "one line for each run and job, and some for the sweep"


def test_jobs_of_a_sweep_are_in_the_order_of_their_names(tmp_path, command):
    names = ["lr-0.5_seed-2", "lr-0.5_seed-10", "lr-2e-1_seed-1", "lr-10_seed-0"]
    sweep, later = (tmp_path / "sweep" / f"2026-11-29_17-2{minute}-00-06985c" for minute in (0, 5))
    # Jobs that ran in parallel start in any order.
    for started, name in enumerate(names):
        make_run(sweep / name, 1000 - started)
    make_run(later / "seed-1", 5000)
    make_run(later / "seed-0", 6000)
    make_run(tmp_path / "small" / "between", 3000)
    expected = ["lr-2e-1_seed-1", "lr-0.5_seed-2", "lr-0.5_seed-10", "lr-10_seed-0", "between", "seed-0", "seed-1"]
    _, out, _ = command(main, f"runs_dir={tmp_path}", "format=csv")
    assert [Path(row["run"]).name for row in csv.DictReader(io.StringIO(out))] == expected
    _, out, _ = command(main, f"runs_dir={tmp_path}")
    rows = [line.split()[1] for line in out.splitlines() if "stopped" in line]
    assert [Path(name).name for name in rows] == expected


def test_columns_that_are_not_shown_are_not_explained(tmp_path, command):
    run = make_run(tmp_path / "small" / "2026-11-29_17-20-00-06985d", 0)
    run.write_config(OmegaConf.create({"overrides": [], "seed": 0}))
    status, out, _ = command(main, f"runs_dir={tmp_path}")
    assert status == 0
    assert "gap" not in out


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


def test_a_folder_of_runs_that_is_a_link_to_itself_is_refused_in_one_message(command, tmp_path):
    link = tmp_path / "loop"
    link.symlink_to(link)
    status, out, err = command(main, f"runs_dir={link}")
    assert (status, out, err.count("\n")) == (1, "", 1)
    # In Python 3.13 and newer pathlib reports a link to itself as a path that does not exist.
    assert err.startswith((f"error: {link} is a link that leads to itself: ", f"error: There are no runs in {link}: "))


@pytest.mark.parametrize(
    "text",
    [
        "evil: " + ":".join(["1"] * 400) + ":1.5\n",
        "evil: " + ":".join(["1"] * 100_000) + "\n",
        "evil: 0x" + "f" * 90_000 + "\n",
        "evil: !!int '1'\n",
        "evil:\n" + "".join(f"  {number * (2**61 - 1)}: 1\n" for number in range(2, 9000)),
        'evil: "' + "${seed}" * 100_000 + '"\n',
    ],
    ids=["float of base 60", "integer of base 60", "hexadecimal", "tag", "keys of equal hash", "references"],
)
def test_a_config_that_takes_long_to_read_counts_as_damaged(three_runs, tmp_path, command, text):
    with three_runs[1].config_file.open("a") as file:
        file.write(text)
    status, out, err = command(main, f"runs_dir={tmp_path}", "format=csv")
    assert status == 0
    assert "damaged" in out
    assert "Traceback" not in err
    assert re.search(r"it has (a number of|a YAML tag|more than)", three_runs[1].damage.reason)


@pytest.mark.parametrize("name", ["seconds", "best_epoch", "val/accuracy"])
def test_a_run_with_infinite_results_counts_as_damaged(three_runs, name):
    three_runs[1].results_file.write_text(json.dumps({"seed": 3, name: float("inf")}))
    assert three_runs[1].state == "damaged"
    assert f"{name} is inf" in three_runs[1].describe_state()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("seed: 5\n", "it has a repeated key"),
        ("evil: {a: 1, a: 2}\n", "it has a repeated key"),
        ("? \n: 1\n", "it has the key None"),
        ("? 2026-01-01\n: 1\n", "it has the key datetime.date"),
        ("evil: '${'\n", "no viable alternative"),
        ("evil: '${a b}'\n", "no viable|mismatched|extraneous|missing|token recognition"),
        ("evil: ['${oc.env:']\n", "no viable|mismatched|extraneous|missing|token recognition"),
    ],
)
def test_a_config_that_omegaconf_refuses_counts_as_damaged(three_runs, tmp_path, command, text, reason):
    with three_runs[1].config_file.open("a") as file:
        file.write(text)
    status, out, err = command(main, f"runs_dir={tmp_path}", "format=csv")
    assert (status, err) == (0, "")
    assert re.search(reason, out)
    assert re.search(reason, three_runs[1].damage.reason)
    with pytest.raises(UserError, match=reason):
        three_runs[1].config()
