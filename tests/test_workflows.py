"""The workflows of GitHub and the hooks of pre-commit name scripts, tools and versions that exist."""

import json
import re
import subprocess
import sys
import tomllib

import pytest
import yaml
from conftest import REPOSITORY

WORKFLOWS = sorted((REPOSITORY / ".github" / "workflows").glob("*.yml"))
HOOKS = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text())


def steps_of(file):
    return [step for job in yaml.safe_load(file.read_text())["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_each_script_of_a_workflow_exists(file):
    scripts = [step["run"].split()[0] for step in steps_of(file) if step.get("run", "").startswith("scripts/")]
    assert all((REPOSITORY / script).is_file() for script in scripts)
    assert scripts or file.stem == "release"


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_workflows_have_read_access_only_and_fixed_versions_of_actions(file):
    assert yaml.safe_load(file.read_text())["permissions"] == {"contents": "read"}
    for step in steps_of(file):
        assert ("uses" in step) != ("run" in step)
        assert "@" in step.get("uses", "@")


def test_the_tested_versions_of_python_are_those_that_the_package_supports():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    tests = next(file for file in WORKFLOWS if file.stem == "tests")
    versions = yaml.safe_load(tests.read_text())["jobs"]["fast"]["strategy"]["matrix"]["python"]
    assert project["requires-python"] == f">={versions[0]}"


def test_the_lowest_torch_and_torchvision_are_tested():
    dependencies = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["dependencies"]
    steps = steps_of(next(file for file in WORKFLOWS if file.stem == "tests"))
    (installed,) = (step["run"] for step in steps if "torch==" in step.get("run", ""))
    for name in ("torch", "torchvision"):
        (lowest,) = re.findall(rf"^{name}>=([\d.]+),", "\n".join(dependencies), re.MULTILINE)
        assert f"{name}=={lowest}." in installed


def test_the_hooks_run_tools_of_the_extra_dev():
    dev = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]["dev"]
    (local,) = (repository for repository in HOOKS["repos"] if repository["repo"] == "local")
    for hook in local["hooks"]:
        tool = hook["entry"].split()[0].removeprefix(".venv/bin/")
        assert any(requirement.startswith(tool) for requirement in dev)


@pytest.mark.slow
@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_workflows_follow_the_schema(file):
    pytest.importorskip("check_jsonschema", reason="check-jsonschema is not installed")
    typed = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", "-o", "json"]
    ended = subprocess.run([*typed, str(file)], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, json.loads(ended.stdout)["errors"]
