"""The settings of a run that a person may have chosen, flat, by their dotted names."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fashion_cnn.runs.files import dotted_items

# Where a run lies, what it goes on from and how it shows itself changes nothing about what it learns.
_NO_SETTINGS = {"name", "overrides", "runs_dir", "resume", "test", "flip_average", "logger", "data.root"}
_NO_SETTINGS |= {"data.eval_batch_size"}
_NO_SETTINGS |= {f"callbacks.{part}" for part in ("lines", "bar", "best", "last", "divergence")}
_NO_SETTINGS |= {f"callbacks.{part}" for part in ("gap", "dynamics", "histograms")}
_NO_SETTINGS |= {f"trainer.{key}" for key in ("enable_progress_bar", "enable_model_summary", "profiler")}

# How the epoch is chosen whose weights stand for the run, but for what names their file.
_BEST = "callbacks.best"
_OF_ITS_FILE = {f"{_BEST}.filename", f"{_BEST}.enable_version_counter"}

Setting = str | int | float | bool


def run_settings(config: DictConfig) -> dict[str, Setting]:
    """`{"optimizer.lr": 0.008, "optimizer": "AdamW", …}`: a part's class stands under the name of the part."""
    container = OmegaConf.to_container(config, resolve=True)
    assert isinstance(container, dict)
    chosen = dict(_flat(container, "", is_setting))
    if chosen.get("data.seed") == chosen.get("seed"):  # As it is where nobody chose another.
        chosen.pop("data.seed", None)
    return chosen


def checkpoint_settings(config: DictConfig) -> dict[str, Setting]:
    """How the epoch is chosen whose weights are measured: `{"callbacks.best.monitor": "val/accuracy", …}`.

    Nothing of it changes what a run learns, and much of it the figures.
    """
    best = OmegaConf.select(config, _BEST)
    container = OmegaConf.to_container(best, resolve=True) if best is not None else {}
    assert isinstance(container, dict)
    return dict(_flat(container, f"{_BEST}.", is_checkpoint_setting))


def is_setting(name: str) -> bool:
    """Whether the option `name`, or the config group of that name, changes what a run learns."""
    return not any(name == other or name.startswith(f"{other}.") for other in _NO_SETTINGS)


def is_checkpoint_setting(name: str) -> bool:
    """Whether the option `name` changes which epoch's weights are measured."""
    return name.startswith(f"{_BEST}.") and name not in _OF_ITS_FILE


def _flat(values: Mapping[Any, Any], prefix: str, is_kept: Callable[[str], bool]) -> Iterator[tuple[str, Setting]]:
    for name, value in dotted_items(values, prefix):
        group, _, key = name.rpartition(".")
        if not is_kept(name) or key == "_partial_" or isinstance(value, Mapping):
            continue
        if key == "_target_":
            # Lightning's Trainer and the one LightningModule are no choices.
            if group not in ("trainer", "model"):
                yield group, str(value).rpartition(".")[2]
        # An empty list is as good as no such option, which older runs do not have.
        elif value is not None and value != []:
            yield name, value if isinstance(value, str | int | float | bool) else str(value)
