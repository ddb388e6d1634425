"""Settings of a run that affect its results, as a flat mapping of dotted names."""

from collections.abc import Callable, Iterator, Mapping
from typing import cast

from omegaconf import DictConfig, OmegaConf

from fashion_cnn.runs.files import dotted_items

# Options of paths, logging, display and the machine, which do not affect training.
_IGNORED = {
    "name",
    "overrides",
    "flags",
    "working_dir",
    "runs_dir",
    "threads",
    "resume",
    "test",
    "flip_average",
    "keep",
    "logger",
    "data.root",
    "data.download",
}
_IGNORED |= {"data.eval_batch_size"}
_IGNORED |= {f"callbacks.{part}" for part in ("lines", "bar", "best", "last", "divergence", "slowdown")}
_IGNORED |= {f"callbacks.{part}" for part in ("gap", "dynamics", "histograms")}
_IGNORED |= {f"trainer.{key}" for key in ("enable_progress_bar", "enable_model_summary", "profiler")}

# First columns of a table of runs, and their settings.
FIRST_COLUMNS = {"Model": "model", "Learning rate": "optimizer.lr", "Seed": "seed"}
# The callback that selects the best checkpoint, and its options that only name the file.
_BEST = "callbacks.best"
_FILE_OPTIONS = {f"{_BEST}.filename", f"{_BEST}.enable_version_counter"}
# Settings that only repeat a training, on other random numbers or other images.
REPETITIONS = ("seed", "data.fold", "data.subset_seed")
# Tags in TensorBoard of the bands over repeated runs begin with it.
BANDS = "over_runs"
# Larger integers may not fit into a float.
_MAX_INTEGER = 2**63

Setting = str | int | float | bool


def run_settings(config: DictConfig) -> dict[str, Setting]:
    """Settings that affect training: `{"optimizer.lr": 0.008, "optimizer": "AdamW", …}`, a class by its group."""
    settings = dict(_flatten(config, is_setting))
    # The seed of the data defaults to that of the run.
    if settings.get("data.seed") == settings.get("seed"):
        settings.pop("data.seed", None)
    # A split that each seed draws anew is one setting, not one for each seed.
    raw = OmegaConf.to_container(config)
    data = raw.get("data") if isinstance(raw, dict) else None
    if isinstance(data, dict) and data.get("split_seed") == "${seed}":
        settings["data.split_seed"] = "seed"
    return settings


def checkpoint_settings(config: DictConfig) -> dict[str, Setting]:
    """Settings that select the best epoch: `{"callbacks.best.monitor": "val/accuracy", …}`.

    They affect the reported metrics, but not training.
    """
    return dict(_flatten(config, is_checkpoint_setting))


def repeated_settings(config: DictConfig) -> dict[str, Setting]:
    """Settings of a training that its repetitions share: all but `REPETITIONS`."""
    settings = run_settings(config) | checkpoint_settings(config)
    # Initial weights and teachers differ between seeds: only their presence and number count.
    if "init_from" in settings:
        settings["init_from"] = "another run"
    if "distillation.teachers" in settings:
        teachers = config.distillation.teachers
        settings["distillation.teachers"] = len(teachers) if OmegaConf.is_list(teachers) else 1
    return {name: value for name, value in settings.items() if name not in REPETITIONS}


def changed_settings(config: DictConfig, default: DictConfig) -> list[str]:
    """List the settings that differ from the default, as `key=value`; of removed ones the outermost group, as null.

    Where a section has another class, its options are left out: they are others, too. So are parts that another class
    of an outer section does not have, such as the augmentations of another data set.

    Args:
        config: the config of a training.
        default: the default config.
    """
    new, old = (run_settings(each) | checkpoint_settings(each) for each in (config, default))
    changed = set()
    for name in new.keys() | old.keys():
        section, _, key = name.rpartition(".")
        if new.get(name) == old.get(name) or new.get(section) != old.get(section):
            continue
        if section in new and name not in new and key not in OmegaConf.select(config, section):
            # Another config file leaves the option out: the class has a default.
            continue
        if name in new:
            value = str(new[name]).replace(", ", ",")
            changed.add(f"{name}={value.lower() if isinstance(new[name], bool) else value}")
        else:
            parts = name.split(".")
            prefixes = (".".join(parts[:length]) for length in range(1, len(parts) + 1))
            removed = next(prefix for prefix in prefixes if not any(f"{key}.".startswith(f"{prefix}.") for key in new))
            above, _, option = removed.rpartition(".")
            if _has_other_class(above, new, old) and option not in (OmegaConf.select(config, above) or {}):
                # The class of an outer section never had it.
                continue
            changed.add(f"{removed}=null")
    return sorted(changed)


def _has_other_class(section: str, new: Mapping[str, Setting], old: Mapping[str, Setting]) -> bool:
    """Return whether a section, or one that contains it, has another class than before."""
    while section and new.get(section) == old.get(section):
        section = section.rpartition(".")[0]
    return bool(section)


def is_setting(name: str) -> bool:
    """Return True if an option or config group affects training."""
    return not any(name == ignored or name.startswith(f"{ignored}.") for ignored in _IGNORED)


def is_checkpoint_setting(name: str) -> bool:
    """Return True if an option affects which epoch is the best."""
    return name.startswith(f"{_BEST}.") and name not in _FILE_OPTIONS


def _flatten(config: DictConfig, predicate: Callable[[str], bool]) -> Iterator[tuple[str, Setting]]:
    container = OmegaConf.to_container(config, resolve=True)
    assert isinstance(container, dict)
    for name, value in dotted_items(container):
        group, _, key = name.rpartition(".")
        if not predicate(name) or key == "_partial_" or isinstance(value, Mapping):
            continue
        if key == "_target_":
            # The classes of trainer and model are always the same.
            if group not in ("trainer", "model"):
                yield group, str(value).rpartition(".")[2]
        # An empty list counts as absent, as in configs of older runs.
        elif value is not None and value != []:
            yield name, to_setting(value)


def to_setting(value: object) -> Setting:
    """Convert a list, or an integer that no float can hold, to text."""
    is_plain = isinstance(value, str | float) or (isinstance(value, int) and abs(value) < _MAX_INTEGER)
    return cast("Setting", value) if is_plain else str(value)
