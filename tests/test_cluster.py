"""A sweep on a Ray cluster: a head that runs nothing, and a worker node; one job's process is killed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PATIENCE, TINY_DATA
from lightning.pytorch import Callback

cluster_utils = pytest.importorskip("ray.cluster_utils")
pytestmark = pytest.mark.cluster


class KilledOnce(Callback):
    """Kills the process at the end of the second epoch of seed 1, the first time."""

    def on_train_epoch_end(self, trainer, pl_module):
        killed = Path(trainer.log_dir or trainer.default_root_dir).parent / "killed"
        if trainer.datamodule.seed == 1 and trainer.current_epoch == 1 and not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def address():
    """Where the cluster is to be reached, whose one worker node runs two jobs at once."""
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        cluster.add_node(wait=False, num_cpus=2)
        cluster.wait_for_nodes(timeout=PATIENCE)
        yield cluster.address
    finally:
        cluster.shutdown()


@pytest.mark.filterwarnings("ignore")
def test_a_sweep_on_a_cluster_loses_no_job_to_a_killed_process(address, tmp_path):
    arguments = [*TINY_DATA, "seed=0,1,2", f"runs_dir={tmp_path}", "+callbacks.killer._target_=test_cluster.KilledOnce"]
    launcher = ["hydra/launcher=ray", f"hydra.launcher.ray.init.address={address}"]
    ended = subprocess.run(
        [sys.executable, "-m", "fashion_cnn.train", "-m", *arguments, *launcher],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "3 of 3 jobs finished" in ended.stdout
    (killed,) = tmp_path.rglob("killed")
    results = {file.parent.name: json.loads(file.read_text()) for file in killed.parent.glob("*/results.json")}
    assert results.keys() == {"seed-0", "seed-1", "seed-2"}
    assert {outcome["epochs"] for outcome in results.values()} == {3}
    log = (killed.parent / "seed-1" / "log.txt").read_text().splitlines()
    assert sum(line.startswith("1/3") for line in log) == 1, "it went on from its last epoch"
