"""What the scripts of the records rest on."""

import json
import subprocess
import sys

import pytest
import yaml
from conftest import REPOSITORY

from fashion_cnn.command_line import compose

ABLATIONS = yaml.safe_load((REPOSITORY / "scripts" / "ablations.yaml").read_text())
CHANGES = [
    pytest.param(name, [*plan["measured_with"], *changes], id=f"{name}: {label}")
    for name, plan in ABLATIONS.items()
    for label, changes in plan["changes"].items()
]


@pytest.mark.parametrize(("name", "overrides"), CHANGES)
def test_each_ablation_changes_its_experiment_and_leaves_the_test_set_alone(name, overrides):
    plan = ABLATIONS[name]["measured_with"]
    as_it_is = compose(overrides=[f"experiment={name}", *plan])
    changed = compose(overrides=[f"experiment={name}", *overrides])
    for config in (as_it_is, changed):
        config.overrides = None
    assert changed != as_it_is
    assert not changed.test
    assert changed.data.val_size > 0


def test_every_record_says_how_it_was_made():
    lines = (REPOSITORY / "scripts" / "records.jsonl").read_text().splitlines()
    for line in map(json.loads, lines):
        assert {"row", "command", "commit", "machine", "results"} <= line.keys()
        assert {"seed", "seconds", "torch"} <= line["results"].keys()
        assert not line["commit"].endswith("+"), "made from a commit, not from changed files"


def test_the_table_shows_each_recorded_row():
    command = [sys.executable, "scripts/reproduce", "table"]
    said = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    assert "| small | 3 | 94.15 ± 0.01 |" in said
