"""The scripts for recorded results and benchmarks."""

import copy
import functools
import importlib
import json
import re
import shlex
import statistics
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml
from conftest import PATIENCE, REPOSITORY, TINY_DATA
from hydra.core.config_store import ConfigNode, ConfigStore

from fashion_cnn import train as train_command
from fashion_cnn.cli import main
from fashion_cnn.cli.main import compose
from fashion_cnn.runs import Run
from fashion_cnn.training import build

ABLATIONS = yaml.safe_load((REPOSITORY / "scripts" / "ablations.yaml").read_text())
RECORDS = [json.loads(line) for line in (REPOSITORY / "scripts" / "records.jsonl").read_text().splitlines()]
CHANGES = [
    pytest.param(name, [*plan["measured_with"], *changes], id=f"{name}: {label}")
    for name, plan in ABLATIONS.items()
    for label, changes in plan["changes"].items()
]


# The size of the validation set is left to the experiment and its ablations.
SMALL_DATA = [part for part in TINY_DATA if part.startswith("data") and "val_size" not in part]


@functools.cache
def unchanged(name):
    """The config of an experiment as its ablations are measured."""
    config = compose(overrides=[f"experiment={name}", *SMALL_DATA, *ABLATIONS[name]["measured_with"]])
    config.overrides = None
    return config


@pytest.mark.slow
@pytest.mark.parametrize(("name", "overrides"), CHANGES)
def test_each_ablation_changes_its_experiment_and_leaves_the_test_set_alone(name, overrides):
    changed = compose(overrides=[f"experiment={name}", *SMALL_DATA, *overrides])
    changed.overrides = None
    assert changed != unchanged(name)
    assert not changed.test
    assert changed.data.val_size > 0
    changed.data.val_size = 32
    # Each part takes the options that are left to it.
    data = build.data(changed)
    build.module(changed, data)
    assert len(next(iter(data.train_dataloader())).targets)


def test_every_record_has_command_commit_machine_and_results():
    for line in RECORDS:
        assert {"row", "command", "commit", "machine", "results"} <= line.keys()
        assert {"seed", "seconds", "torch"} <= line["results"].keys()
        assert not line["commit"].endswith("-dirty"), "made from a commit, not from changed files"
        if line["row"].startswith("speedrun") and "ablates" not in line:
            assert {"wall_seconds", "test_flip/accuracy"} <= line["results"].keys()


@pytest.fixture
def provenance(script):
    """The module that compares records with the present code."""
    script("reproduce")
    return importlib.import_module("provenance")


@pytest.fixture
def clone(tmp_path):
    """A git repository with a module that trainings depend on and one that they do not; a function that commits it."""
    for name in ("models/layers.py", "retrieval/catalogue.py"):
        (tmp_path / "fashion_cnn" / name).parent.mkdir(parents=True)
        (tmp_path / "fashion_cnn" / name).write_text("VALUE = 1\n")

    def git(*words):
        identity = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
        command = ["git", *identity, *words]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip()

    def commit():
        git("add", "-A")
        git("commit", "-m", "Change")
        return git("rev-parse", "--short", "HEAD")

    git("init")
    return tmp_path, commit


def test_the_code_hash_of_files_is_that_of_their_commit_and_ignores_other_modules(provenance, clone):
    folder, commit = clone
    hashes = {}
    for name in ("first", "models/layers.py", "retrieval/catalogue.py"):
        if (folder / "fashion_cnn" / name).exists():
            (folder / "fashion_cnn" / name).write_text("VALUE = 2\n")
        before = provenance.hash_code(folder)
        assert provenance.hash_committed_code(folder, commit()) == before
        hashes[name] = before
    assert hashes["first"] != hashes["models/layers.py"] == hashes["retrieval/catalogue.py"]
    assert provenance.hash_committed_code(folder, "0123456") is None


def test_the_code_hash_covers_the_classes_that_configs_name(provenance):
    others = ("hydra", "sweep", "tune")
    for file in (REPOSITORY / "conf").rglob("*/*.yaml"):
        if file.relative_to(REPOSITORY / "conf").parts[0] in others:
            continue
        for path in re.findall(r"_target_: fashion_cnn\.(\S+)\.\w+$", file.read_text(), re.MULTILINE):
            assert f"{path.replace('.', '/')}/".startswith(provenance.TRAINING_CODE), (file, path)


def test_reproduce_table_tells_records_of_other_settings_and_other_code(reproduce, clone, monkeypatch, capsys):
    folder, commit = clone
    older = commit()
    (folder / "fashion_cnn" / "models" / "layers.py").write_text("VALUE = 2\n")
    newer = commit()
    monkeypatch.setattr(reproduce, "REPOSITORY", folder)
    now, settings = reproduce.hash_code(folder), reproduce.Training("tiny", ["model=tiny"], 0).recipe

    def line(row, seed, commit, **origin):
        command = f"python -m fashion_cnn.train model=tiny seed={seed}"
        results = {"seed": seed, "test/accuracy": 0.5}
        return {"row": row, "command": command, "commit": commit, "machine": "M", "results": results, **origin}

    lines = [
        line("no hashes", 0, older),
        line("no hashes", 1, newer),
        line("both hashes", 0, newer, recipe=settings, code=now),
        line("changed", 0, f"{newer}-dirty", recipe="other", code="other"),
        line("changed", 1, older, recipe="first"),
        line("changed", 1, older, recipe="other"),
        line("lost commit", 0, "0123456", recipe=settings),
    ]
    reproduce.RECORDS.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    reproduce.print_recorded([])
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in capsys.readouterr().out.splitlines()]
    assert rows[0][-3:] == ["settings", "code", "not counted"]
    assert {row[0]: (row[1], *row[-3:]) for row in rows[2:6]} == {
        "no hashes": ("2", "unknown", f"other: seeds 0; same: seeds 1 ({older})", "none"),
        "both hashes": ("1", "same", "same", "none"),
        "changed": ("2", "other", f"other ({newer}-dirty, {older})", f"seed 1 of {older}"),
        "lost commit": ("1", "same", "unknown (0123456)", "none"),
    }


def test_a_record_names_a_commit_with_changed_files_and_the_hash_of_the_code(reproduce, clone, monkeypatch):
    folder, commit = clone
    name = commit()
    monkeypatch.setattr(reproduce, "REPOSITORY", folder)
    assert reproduce.code_state() == {"commit": name, "code": reproduce.hash_code(folder)}
    (folder / "fashion_cnn" / "models" / "layers.py").write_text("VALUE = 2\n")
    assert reproduce.code_state() == {"commit": f"{name}-dirty", "code": reproduce.hash_code(folder)}


@functools.cache
def printed_table():
    """Return the output of scripts/reproduce table."""
    command = [sys.executable, "scripts/reproduce", "table"]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_the_table_shows_each_recorded_row_with_its_mean():
    assert len(RECORDS) > 10
    for row in {line["row"] for line in RECORDS if "ablates" not in line}:
        of_row = [r for r in RECORDS if r["row"] == row]
        recipe = next((r["recipe"] for r in reversed(of_row) if "recipe" in r), None)
        of_row = [r for r in of_row if r.get("recipe", recipe) == recipe]
        newest = {r["results"]["seed"]: r["results"]["test/accuracy"] for r in of_row}
        shown = next(line for line in printed_table().splitlines() if line.startswith(f"| {row} |"))
        assert f"| {row} | {len(newest)} | {statistics.fmean(newest.values()):.2%}"[:-1] in shown


def recorded_row(name):
    """The cells of a row of scripts/reproduce table by heading."""
    heading, _, *rows = (
        [cell.strip() for cell in line.split("|")[1:-1]] for line in printed_table().splitlines() if line
    )
    return dict(zip(heading, next(row for row in rows if row[0] == name), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("document", ["README.md", "docs/results.md"])
def test_the_accuracies_and_gaps_in_the_documents_are_the_recorded_ones(document):
    """Rows such as | `experiment=tiny` | 98,426 | 7.3 | **94.34 ± 0.16** (5) | 94.52 ± 0.11 | 2.90 ± 0.29 |"""
    value = r"\**([\d.]+(?: ± [\d.]+)?)\**"
    pattern = (
        rf"^\| `(experiment|model)=(\w+)`.*\| {value} \((\d+)\) \|\s*(?:{value}|[a-z ]*)\s*\|\s*(?:{value})?\s*\|$"
    )
    rows = re.findall(pattern, (REPOSITORY / document).read_text(), re.MULTILINE)
    assert len(rows) >= 6
    for group, name, *cells in rows:
        recorded = recorded_row(f"model={name}" if group == "model" else name)
        columns = ("test %", "seeds", "flip-averaged %", "gap to test, points")
        assert cells == [recorded[column].replace("not measured", "") for column in columns], name


def test_the_sizes_of_the_networks_in_the_documents_are_the_recorded_ones():
    """Rows such as | `tiny` | 16; 32, 64, 96 | 98,426 | 6.0 M | …"""
    text = (REPOSITORY / "docs" / "results.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| ([\d,]+) \| ([\d,.]+) M \|", text, re.MULTILINE)
    assert {name for name, *_ in rows} == {"tiny", "small", "medium", "large", "baseline"}
    for name, parameters, multiply_adds in rows:
        results = next(line["results"] for line in reversed(RECORDS) if line["row"] == name)
        assert int(parameters.replace(",", "")) == results["parameters"]
        digits = len(multiply_adds.partition(".")[2])
        assert multiply_adds == f"{results['multiply_adds'] / 1e6:,.{digits}f}"


@pytest.mark.parametrize("file", sorted((REPOSITORY / "conf").rglob("*.yaml")), ids=lambda file: file.stem)
@pytest.mark.slow
def test_comments_in_configs_state_only_recorded_results(file):
    comments = " ".join(line.strip(" #") for line in file.read_text().splitlines() if line.strip().startswith("#"))
    stated = re.findall(r"([\d.]+(?: ± [\d.]+)?) ?(%|minutes|s\b|points)", comments)
    header = re.search(
        r"Test accuracy (.+?)%(?:, flip-averaged (.+?)%)? \((\d+) seeds?(?:, (.+?) (minutes|s)\b)?", comments
    )
    if header is None:
        assert file.parent.name != "experiment" or not stated
        return
    assert f"scripts/reproduce table {file.stem}" in comments
    recorded = recorded_row(file.stem)
    test, flip, seeds, duration, unit = header.groups()
    assert (test, seeds) == (recorded["test %"], recorded["seeds"])
    assert flip in (None, recorded["flip-averaged %"])
    assert duration in (None, recorded["minutes of training" if unit == "minutes" else "seconds in all"])


@pytest.fixture
def reproduce(tmp_path, monkeypatch, script):
    """The script as a module, with a plan of one change over two seeds, no records, and trainings that cost nothing."""
    script = script("reproduce")
    plan = {
        "speedrun_93": {"seeds": 2, "measured_with": ["test=false"], "changes": {"longer": ["trainer.max_epochs=5"]}}
    }
    script.ABLATIONS, script.RECORDS = tmp_path / "plan.yaml", tmp_path / "records.jsonl"
    script.ABLATIONS.write_text(yaml.safe_dump(plan))
    script.trained = []

    def train(training, at_once):
        script.trained.append((training.overrides[-1], training.seed))
        return {
            "recipe": training.recipe,
            "command": shlex.join(training.command),
            "results": {"seed": training.seed, "val/accuracy": 0.5},
            "machine": "M",
            "commit": "unknown",
            "code": script.hash_code(REPOSITORY),
        }

    script.really_train = script.train
    monkeypatch.setattr(script, "train", train)
    return script


def test_recorded_ablations_continue_after_a_stop(reproduce, capsys):
    reproduce.ablate("speedrun_93", record=True)
    assert reproduce.trained == [("test=false", 0), ("test=false", 1)] + [("trainer.max_epochs=5", s) for s in (0, 1)]
    whole = reproduce.RECORDS.read_text()
    reproduce.RECORDS.write_text("".join(whole.splitlines(keepends=True)[:3]))
    reproduce.trained.clear()
    reproduce.ablate("speedrun_93", record=True)
    assert reproduce.trained == [("trainer.max_epochs=5", 1)]
    assert reproduce.RECORDS.read_text() == whole
    assert "| speedrun_93: longer | 2 | 50.00 ± 0.00 |" in capsys.readouterr().out


def test_an_ablation_with_changed_settings_is_trained_again(reproduce):
    reproduce.ablate("speedrun_93", record=True)
    reproduce.ABLATIONS.write_text(reproduce.ABLATIONS.read_text().replace("epochs=5", "epochs=6"))
    reproduce.trained.clear()
    reproduce.ablate("speedrun_93", record=True)
    assert reproduce.trained == [("trainer.max_epochs=6", 0), ("trainer.max_epochs=6", 1)]


def test_a_row_has_records_of_one_recipe(reproduce, monkeypatch):
    for recipe, seeds in (("old", "0,1"), ("new", "1,")):
        monkeypatch.setattr(reproduce.Training, "recipe", recipe)
        reproduce.reproduce("speedrun_93", {"seeds": seeds, "record": ""}, [])
    assert [(line["recipe"], line["results"]["seed"]) for line in reproduce.recorded("speedrun_93")] == [("new", 1)]


def test_a_setting_that_was_added_later_changes_the_hash_only_if_it_changes_the_training(reproduce):
    def digest(*overrides):
        return reproduce.hash_settings(compose(overrides=["model=small", *overrides]))

    assert digest("~model.network.strided_stem") == digest()
    assert digest("model.network.strided_stem=true") != digest()


@pytest.fixture
def typed(command, reproduce, monkeypatch):
    """Return a function that runs scripts/reproduce with arguments and the real records."""
    monkeypatch.setattr(reproduce, "RECORDS", REPOSITORY / "scripts" / "records.jsonl")

    def main():
        with reproduce.arguments.user_errors_as_messages():
            reproduce.main()

    return lambda *words: command(main, *words)


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["small", "optimizer.lrr=3"], 2, "unknown option 'optimizer.lrr'. Did you mean optimizer.lr?"),
        (["small", "optimizer=adamv"], 2, "optimizer=adamv does not exist. Did you mean adamw?"),
        (["smal"], 1, "smal is neither an experiment nor a model"),
        (["table", "smal"], 1, "smal is not a recorded row. Did you mean small?"),
        (["small", "record=false"], 2, "record=false is not possible: record takes no value"),
        *((["small", f"seeds={seeds}"], 1, f"seeds={seeds} names no seed") for seeds in ("0", "x", ",", "")),
    ],
)
def test_user_errors_of_reproduce_are_one_line_and_train_nothing(typed, reproduce, words, status, message):
    exit_status, _, err = typed(*words)
    assert exit_status == status
    assert message in err
    assert err.count("\n") == 1
    assert not reproduce.trained


def test_ctrl_c_of_reproduce_prints_how_to_continue(typed, reproduce, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(reproduce, "wait", stopped)
    status, _, err = typed("speedrun_93", "seeds=1")
    assert status == 130
    assert "Stopped. Run the same command again to continue." in err
    assert "Traceback" not in err


@pytest.fixture
def benchmark(command, script, monkeypatch):
    """Return a function that runs scripts/benchmark with arguments."""
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        # Restored after the test: the script seeds its process.
        monkeypatch.setenv(name, "0")
    return functools.partial(command, script("benchmark").main)


def test_benchmark_reports_an_unknown_model_in_one_line(benchmark):
    status, _, err = benchmark("--model", "smal")
    assert status == 2
    assert err.startswith("error: model=smal does not exist. Did you mean small? Choices of model: ")
    assert err.count("\n") == 1


def test_a_recipe_is_a_hash_of_all_settings_but_the_seed(reproduce):
    first, other_seed, longer = (
        reproduce.Training("row", typed, seed)
        for typed, seed in (
            (["model=tiny"], 0),
            (["model=tiny", "runs_dir=elsewhere"], 1),
            (["model=tiny", "trainer.max_epochs=5"], 0),
        )
    )
    assert first.recipe == other_seed.recipe != longer.recipe


def test_a_stopped_recording_is_resumed_and_not_timed(reproduce, tmp_path, monkeypatch):
    training = reproduce.Training("tiny", ["model=tiny"], 3)
    typed = []

    def run(command, **_):
        typed.append(command[3:])
        named = dict(word.partition("=")[::2] for word in command[3:])
        folder = Path(named.get("resume") or f"{named['runs_dir']}/tiny/{len(typed)}")
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text("seed: 3\n")
        (folder / "checkpoints" / "last.ckpt").touch()
        if len(typed) == 1:
            raise subprocess.CalledProcessError(130, command)
        (folder / "results.json").write_text('{"seed": 3, "hardware": "CPU"}')

    monkeypatch.setattr(reproduce, "REPOSITORY", tmp_path)
    commits = ["first", "first", "second"]
    monkeypatch.setattr(reproduce, "git", lambda _, *words: commits[len(typed)] if words[0] == "rev-parse" else "")
    monkeypatch.setattr(reproduce.subprocess, "run", run)
    with pytest.raises(subprocess.CalledProcessError):
        reproduce.really_train(training)
    gone_on, anew = reproduce.really_train(training), reproduce.really_train(training)
    assert typed[0] == ["model=tiny", "seed=3", f"runs_dir={training.folder}"]
    assert typed[1] == [f"resume={typed[0][2].removeprefix('runs_dir=')}/tiny/1"]
    assert typed[2] == typed[0]
    assert importlib.import_module("results_table").without_other_load([gone_on, anew]) == [anew]
    assert (gone_on["commit"], anew["commit"]) == ("first", "second")


def test_failed_and_differently_evaluated_runs_are_not_resumed(reproduce, tmp_path, monkeypatch):
    training = reproduce.Training("tiny", ["model=tiny"], 3)
    without_test = reproduce.Training("tiny test=false", ["model=tiny", "test=false"], 3)
    assert training.recipe == without_test.recipe
    typed = []

    def run(command, **_):
        typed.append(command[3:])
        folder = Path(command[-1].partition("=")[2]) / "tiny" / str(len(typed))
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "config.yaml").write_text("seed: 3\n")
        (folder / "checkpoints" / "last.ckpt").touch()
        if len(typed) == 2:
            (folder / "error.txt").write_text("the loss became nan")
        raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(reproduce, "REPOSITORY", tmp_path)
    monkeypatch.setattr(reproduce, "git", lambda *words: "")
    monkeypatch.setattr(reproduce.subprocess, "run", run)
    for each in (without_test, training, training):
        with pytest.raises(subprocess.CalledProcessError):
            reproduce.really_train(each)
    assert not [words for words in typed if words[0].startswith("resume=")]


def test_a_record_names_the_gpu(reproduce):
    assert reproduce.machine("NVIDIA H200").endswith(" cores, NVIDIA H200")
    assert reproduce.machine("CPU, 2 threads, AVX512").endswith(" cores")


def test_a_recording_names_both_commits_if_they_differ(reproduce, tmp_path, monkeypatch, capsys):
    training = reproduce.Training("tiny", ["model=tiny"], 3)
    monkeypatch.setattr(reproduce, "REPOSITORY", tmp_path)
    run = Run(training.folder / "tiny" / "one")
    run.checkpoints.mkdir(parents=True)
    run.last_checkpoint.touch()
    run.config_file.write_text("seed: 3\n")
    (training.folder / "code.json").write_text('{"commit": "older", "code": "before"}')
    monkeypatch.setattr(reproduce, "git", lambda _, *words: "newer" if words[0] == "rev-parse" else "")
    monkeypatch.setattr(reproduce, "hash_code", lambda _: "after")
    results = '{"seed": 3, "hardware": "CPU"}'
    monkeypatch.setattr(reproduce.subprocess, "run", lambda *_, **__: run.results_file.write_text(results))
    record = reproduce.really_train(training)
    assert (record["commit"], record["code"]) == ("older, ended at newer", "before, ended at after")
    assert "(resumed, started at older)" in capsys.readouterr().out


@pytest.mark.parametrize("at_once", [1, 2])
def test_no_training_starts_after_a_failed_one_which_is_reported(reproduce, monkeypatch, capsys, at_once):
    begun = []

    def train(training, at_once):
        begun.append(training.seed)
        if training.seed == 1:
            raise subprocess.CalledProcessError(3, training.command)
        return {"results": {"seed": training.seed}}

    monkeypatch.setattr(reproduce, "train", train)
    trainings = [reproduce.Training("tiny", ["model=tiny"], seed) for seed in range(6)]
    ended = []

    def run_all():
        with pytest.raises(SystemExit) as stop:
            reproduce.run_all(trainings, record=True, at_once=at_once)
        ended.append(stop.value.code)

    # Beside this one, which is not to wait for ever.
    thread = threading.Thread(target=run_all, daemon=True)
    thread.start()
    thread.join(timeout=PATIENCE)
    assert ended == [3]
    assert len(begun) <= at_once + 1
    assert sorted(json.loads(line)["results"]["seed"] for line in reproduce.RECORDS.read_text().splitlines()) == [
        seed for seed in sorted(begun) if seed != 1
    ]
    assert "python -m fashion_cnn.train model=tiny seed=1 failed." in capsys.readouterr().err


def test_the_profile_of_a_step_names_the_types_of_layers(benchmark):
    status, out, err = benchmark("--profile", "--model", "tiny", "--fraction", "0.01")
    assert (status, err) == (0, "")
    *lines, last = out.splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    values = {row[0]: (float(row[1]), int(row[2].removesuffix("%"))) for row in rows[2:]}
    assert {"convolution, forward", "convolution, backward", "normalisation", "pooling", "optimizer"} <= set(values)
    assert [value for value, _ in values.values()] == sorted((value for value, _ in values.values()), reverse=True)
    assert sum(share for _, share in values.values()) == pytest.approx(100, abs=len(values))
    assert last.startswith("convolutions: ")
    assert "of the matrix-multiply peak" in last


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["aten::mkldnn_convolution", "aten::convolution"], "convolution, forward"),
        (["aten::fill_", "aten::convolution_backward", "ConvolutionBackward0"], "copies and fills"),
        (["aten::empty", "aten::convolution_backward", "ConvolutionBackward0"], "convolution, backward"),
        (["aten::addmm", "Optimizer.step#Muon.step"], "optimizer"),
        (["aten::randperm"], "other"),
    ],
)
def test_an_operation_counts_as_the_layer_that_called_it(script, names, expected):
    assert script("benchmarks/profiling.py").layer_type(names) == expected


@pytest.mark.slow
def test_startup_benchmark_prints_a_row_per_command(benchmark):
    status, out, err = benchmark("--startup", "--commands", "predict", "--rounds", "1")
    assert (status, err) == (0, "")
    heading, rule, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines())
    assert heading == [
        "command",
        *("--help, median s", "minimum", "--cfg job, median s", "minimum", "mistyped, median s", "minimum"),
        "--help within 1 s",
    ]
    (row,) = rows
    assert len(row) == len(heading) == len(rule)
    assert row[0] == "predict"
    assert row[1:7:2] == row[2:7:2], "one round: its value is both the median and the minimum"
    assert all(float(value) > 0 for value in row[1:7])
    assert row[-1] in ("yes", "no")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--commands", "train,predct"],
            "--commands: 'predct' is not a command. Did you mean predict? Commands: cache, compare, ",
        ),
        (["--commands", "predict", "--rounds", "0"], "--rounds=0 is not possible: give 1 or more."),
    ],
)
def test_startup_benchmark_reports_user_errors_in_one_message(benchmark, arguments, message):
    status, out, err = benchmark("--startup", *arguments)
    assert (status, out) == (2, "")
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1


def test_composing_while_the_config_store_is_shared_keeps_it_shared():
    with main._shared_config_store():
        compose(overrides=["model=tiny"])
        assert copy.deepcopy(ConfigStore.instance()) is ConfigStore.instance()
    assert copy.deepcopy(ConfigStore.instance()) is not ConfigStore.instance()


def test_help_of_train_copies_no_schema_of_the_config_store(command, monkeypatch):
    def refuse(node, memo):
        raise AssertionError(f"{node.name} was copied")

    monkeypatch.setattr(ConfigNode, "__deepcopy__", refuse, raising=False)
    status, out, err = command(train_command.main, "--help")
    assert (status, err) == (0, "")
    assert "\noptimizer: adamw, " in out
    with pytest.raises(AssertionError, match="was copied"):
        # Outside a command Hydra works as ever.
        copy.deepcopy(ConfigStore.instance())
