"""What a sweep leaves when its last job is done: one table of all of them, and how to run what is missing."""

import shlex

from fashion_cnn.runs import as_typed
from fashion_cnn.sweeps.directory import Sweep


def conclude(sweep: Sweep, *, stopped: bool = False) -> int:
    """Print and write what became of the jobs; returns the exit status: 0 where all of them finished, 130 for Ctrl-C.

    stopped: by a person, who is told how to go on and is not kept waiting for figures.
    """
    if not sweep.begun:
        # None was begun, so that there is nothing to keep.
        sweep.discard()
        return 130 if stopped else 1
    missing = [run for run in sweep.runs if run.state != "finished"]
    if not stopped:
        _compare(sweep)
    shown = as_typed(sweep.path)
    print(f"\n{len(sweep.runs) - len(missing)} of {len(sweep.runs)} jobs finished in {shown}", flush=True)
    if not missing:
        return 0
    for run in missing:
        if not run.config_file.exists():
            print(f"  not begun: {run.path.name}")
        elif stopped:
            # No table has told it.
            print(f"  {run.how_it_stands()}: {run.path.name}")
    command = shlex.join(["python", "-m", "fashion_cnn.train", f"resume={shown}"])
    print(f"Run what is missing, and that alone:\n  {command}", flush=True)
    return 130 if stopped else 1


def _compare(sweep: Sweep) -> None:
    from fashion_cnn.analysis.comparison import compare
    from fashion_cnn.analysis.comparison_files import write_comparison
    from fashion_cnn.screen import print_comparison

    begun = [run for run in sweep.runs if run.config_file.exists()]
    if any(run.state == "finished" for run in begun):
        comparison = compare(begun)
        print_comparison(comparison, *write_comparison(comparison, sweep.path / "comparison"))
        return
    for run in begun:
        print(f"{as_typed(run.path)}: {run.how_it_stands()}")
