"""What the scripts of the records rest on."""

import json
import statistics
import subprocess
import sys

import pytest
import yaml
from conftest import REPOSITORY, TINY_DATA

from fashion_cnn.command_line import compose
from fashion_cnn.training import build

ABLATIONS = yaml.safe_load((REPOSITORY / "scripts" / "ablations.yaml").read_text())
RECORDS = [json.loads(line) for line in (REPOSITORY / "scripts" / "records.jsonl").read_text().splitlines()]
CHANGES = [
    pytest.param(name, [*plan["measured_with"], *changes], id=f"{name}: {label}")
    for name, plan in ABLATIONS.items()
    for label, changes in plan["changes"].items()
]


@pytest.mark.parametrize(("name", "overrides"), CHANGES)
def test_each_ablation_changes_its_experiment_and_leaves_the_test_set_alone(name, overrides):
    plan = ABLATIONS[name]["measured_with"]
    tiny_data = [part for part in TINY_DATA if part.startswith("data")]
    as_it_is = compose(overrides=[f"experiment={name}", *plan, *tiny_data])
    changed = compose(overrides=[f"experiment={name}", *tiny_data, *overrides, "data.val_size=32"])
    for config in (as_it_is, changed):
        config.overrides = None
    assert changed != as_it_is
    assert not changed.test
    assert compose(overrides=[f"experiment={name}", *overrides]).data.val_size > 0
    # Each part takes the options that are left to it.
    data = build.data(changed)
    build.module(changed, data)
    assert len(next(iter(data.train_dataloader())).targets)


def test_every_record_says_how_it_was_made():
    for line in RECORDS:
        assert {"row", "command", "commit", "machine", "results"} <= line.keys()
        assert {"seed", "seconds", "torch"} <= line["results"].keys()
        assert not line["commit"].endswith("+"), "made from a commit, not from changed files"
        if line["row"].startswith("speedrun"):
            assert {"wall_seconds", "test_flip/accuracy"} <= line["results"].keys() or "ablates" in line


def test_the_table_shows_each_recorded_row_with_its_mean():
    command = [sys.executable, "scripts/reproduce", "table"]
    said = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    assert len(RECORDS) > 10
    for row in {line["row"] for line in RECORDS if "ablates" not in line}:
        newest = {r["results"]["seed"]: r["results"]["test/accuracy"] for r in RECORDS if r["row"] == row}
        shown = next(line for line in said.splitlines() if line.startswith(f"| {row} |"))
        assert f"| {row} | {len(newest)} | {statistics.fmean(newest.values()):.2%}"[:-1] in shown


@pytest.mark.parametrize("typed", ["0", "x", ",", ""])
def test_seeds_that_are_none_are_refused(typed):
    command = [sys.executable, "scripts/reproduce", "small", f"seeds={typed}"]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert f"seeds={typed} names no seed" in ended.stderr
