"""One job of a sweep, in whichever process and on whichever machine the launcher runs it."""

import contextlib
import gc
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from fashion_cnn.errors import UserError
from fashion_cnn.runs import Run

# What a job that shares the terminal with others prints, in its directory.
LOG_FILE = "log.txt"


def run_job(
    task: Callable[[DictConfig], Any], config: DictConfig, explain: Callable[[Exception], UserError | None]
) -> Any:
    """Call `task`; a failure is written to the job's directory and told, and None returned, so that the others go on.

    explain: words for an error that a person can mend, None for any other.
    """
    composed = HydraConfig.get()
    run = Run(Path(composed.runtime.output_dir))
    _enter(Path(composed.runtime.cwd))
    alone = composed.launcher._target_.endswith(".BasicLauncher")
    finished = run.state == "finished"
    if finished:
        print(f"{run.path.name}: was finished already", flush=True)
    with contextlib.nullcontext() if alone or finished else _told_apart(run):
        try:
            return task(config)
        except (Exception, SystemExit) as error:
            mistake = explain(error) if isinstance(error, Exception) else None
            if mistake is None:
                traceback.print_exc()
            _record(run, config, f"{type(error).__name__}: {error}" if mistake is None else str(mistake))
            return None
        finally:
            # Trainer, loggers and callbacks refer to each other; their tensors are not to wait for the next job.
            gc.collect()


def _enter(folder: Path) -> None:
    """Go where the sweep was started, so that relative paths lead to the same files on another node of a cluster."""
    if folder.is_dir() and Path.cwd() != folder:
        os.chdir(folder)


def _record(run: Run, config: DictConfig, reason: str) -> None:
    print(f"error: {run.path.name}: {reason}", file=sys.stderr, flush=True)
    if run.state in ("finished", "running"):
        return  # It is another's to say how those stand.
    if not run.config_file.exists():
        run.create()
        run.write_config(config)
    run.error_file.write_text(f"{reason}\n")


@contextlib.contextmanager
def _told_apart(run: Run) -> Iterator[None]:
    """Print a line at the start and at the end; what the job prints goes to its own log."""
    terminal = sys.stdout
    print(f"{run.path.name}: started", file=terminal, flush=True)
    run.create()
    log = (run.path / LOG_FILE).open("a", buffering=1)
    with log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        yield
    print(f"{run.path.name}: {_outcome(run)}", file=terminal, flush=True)


def _outcome(run: Run) -> str:
    results = run.results()
    figures = [
        f"{split} {results[f'{split}/accuracy']:.2%}" for split in ("val", "test") if f"{split}/accuracy" in results
    ]
    return ", ".join([run.how_it_stands(), *figures])
