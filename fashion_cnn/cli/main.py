"""Entry point of the commands: composes the config with Hydra, calls the command, reports errors in one message."""

import atexit
import gc
import io
import logging
import os
import secrets
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra._internal.config_repository import ConfigRepository
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from fashion_cnn.cli.errors import check_overrides, describe_error, exit_with, exit_with_error
from fashion_cnn.cli.options import COMMANDS_WITH_GROUPS
from fashion_cnn.cli.user_settings import apply_user_settings, read_user_settings
from fashion_cnn.errors import Interrupted, UserError, as_typed
from fashion_cnn.runs.overrides import (
    CONFIG_DIR,
    QUOTED_KEYS,
    config_flags,
    quote_override,
    quote_value,
    unquote_override,
)
from fashion_cnn.runs.trust import trust_packages

if TYPE_CHECKING:
    from fashion_cnn.sweeps.sweep import Sweep


def run_command(config_name: str, task: Callable[[DictConfig], Any]) -> None:
    """Compose `conf/<config_name>.yaml` with the overrides on the command line and call `task` with it.

    The process exits with status 1 after a failure, 2 after an error on the command line, 3 if a part of the input was
    left out, 130 after Ctrl-C, and 141 when the reader of standard output, such as `head`, has closed it.

    Args:
        config_name: the command's file in conf/, without the suffix.
        task: called with the config.
    """
    # Otherwise the interpreter looks for cycles among all objects of the libraries once more before it ends.
    atexit.register(gc.freeze)
    _reject_dashes(sys.argv[1:])
    if config_name != "train" and {"-m", "--multirun"} & set(sys.argv[1:]):
        exit_with(f"-m starts sweeps of fashion_cnn.train only: leave it out of fashion_cnn.{config_name}.", 2)
    # Hydra's own log would show that Matplotlib has made its cache of fonts.
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    with closed_output_ends_quietly():
        wants_help = bool({"--help", "-h"} & set(sys.argv[1:]))
        if wants_help and config_name not in COMMANDS_WITH_GROUPS:
            _print_help(config_name)
            return
        with _help_as_typed() if wants_help else nullcontext():
            _run(config_name, task, wants_traceback=os.environ.get("HYDRA_FULL_ERROR") == "1")


@contextmanager
def paused_garbage_collection() -> Iterator[None]:
    """Pause the search for reference cycles. Imports create objects by the million, and hardly any cycle."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _print_help(config_name: str) -> None:
    """Print a command's help text and its options, each with the comment above it in the config."""
    text = (CONFIG_DIR / f"{config_name}.yaml").read_text()
    shared = (CONFIG_DIR / "hydra" / "options.yaml").read_text()
    _, _, options = text.partition("\n\ndefaults:")[0].partition("\n")
    _, _, shared_options = shared.partition("\n\n")
    template = OmegaConf.create(text).hydra.help.template
    print(as_typed(f"{template}\nOptions (KEY=VALUE) and their defaults:\n\n{options}\n{shared_options}"))


@contextmanager
def _help_as_typed() -> Iterator[None]:
    """Print the help text that Hydra prints with commands in the form that the user types."""
    text = io.StringIO()
    try:
        with redirect_stdout(text):
            yield
    finally:  # Hydra exits.
        print(as_typed(text.getvalue()), end="")


def _run(config_name: str, task: Callable[[DictConfig], Any], *, wants_traceback: bool) -> None:
    OmegaConf.register_new_resolver("job_name", _job_name, replace=True)
    OmegaConf.register_new_resolver("sweep_name", lambda choices: choices.get("sweep") or "sweep", replace=True)
    OmegaConf.register_new_resolver("short_id", lambda: secrets.token_hex(3), use_cache=True, replace=True)
    stop: KeyboardInterrupt | None = None
    try:
        arguments = _sweep_arguments(sys.argv[1:]) if config_name == "train" else sys.argv[1:]
        arguments = apply_user_settings(config_name, arguments)
        sys.argv[1:] = [quote_override(argument) for argument in arguments]
        with _hydra_raises(), _shared_config_store(), _included_files_hidden(), _hydra_config_restored():
            hydra.main(config_path=str(CONFIG_DIR), config_name=config_name, version_base="1.3")(
                _Task(config_name, task, wants_traceback)
            )()
    except KeyboardInterrupt as error:
        stop = error
    except BrokenPipeError:
        raise
    except Exception as error:
        if wants_traceback:
            raise
        sweep = _started_sweep(config_name)
        if sweep is None or not sweep.has_started:
            if sweep:
                sweep.discard()
            exit_with_error(error, config_name, str(CONFIG_DIR))
        print(f"error: the launcher failed: {type(error).__name__}: {error}", file=sys.stderr)
    if sweep := _started_sweep(config_name):
        from fashion_cnn.cli.multirun import conclude

        status = conclude(sweep, stopped=stop is not None)
    elif stop:
        # A training that has started raises Interrupted with a message of its own.
        default = "Stopped before the training started." if config_name == "train" else "Stopped."
        print(f"\n{stop if isinstance(stop, Interrupted) else default}", file=sys.stderr)
        status = stop.status if isinstance(stop, Interrupted) else 130
    else:
        return
    if status:
        sys.exit(status)


# Only `train` runs sweeps: the other commands import no code for them.


def _sweep_arguments(arguments: Sequence[str]) -> list[str]:
    """Return the command line of `train`; where `resume=` names a sweep, the one that continues this sweep."""
    from fashion_cnn.cli.multirun import SweepStart
    from fashion_cnn.sweeps.sweep import resumed_sweep

    SweepStart.sweep = None
    return resumed_sweep(arguments, read_user_settings().get("runs_dir", "runs"))


def _started_sweep(config_name: str) -> "Sweep | None":
    """Return the sweep that was started from this command line."""
    if config_name != "train":
        return None
    from fashion_cnn.cli.multirun import SweepStart

    return SweepStart.sweep


def _job_name(overrides: Iterable[str], shared: Iterable[str] = ()) -> str:
    """Resolve `${job_name:...}` in conf/train.yaml."""
    from fashion_cnn.sweeps.jobs import job_name

    return job_name(overrides, shared)


def sweep_job_directory() -> Path | None:
    """Return the directory of the sweep job that Hydra runs in this process; None outside of sweeps."""
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        return Path(HydraConfig.get().runtime.output_dir)
    return None


class _Task:
    """The function that Hydra calls with the composed config; picklable, for jobs of a sweep in other processes."""

    def __init__(self, config_name: str, task: Callable[[DictConfig], Any], wants_traceback: bool) -> None:
        self.config_name = config_name
        self.task = task
        self.wants_traceback = wants_traceback

    def __call__(self, config: DictConfig) -> Any:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            from fashion_cnn.sweeps.jobs import run_job

            return run_job(self._run_checked, config, lambda error: self._describe(error, config))
        try:
            # Outside of this call, Hydra would print the error.
            with closed_output_ends_quietly():
                return self._run_checked(config)
        except Exception as error:
            if self.wants_traceback:
                raise
            # Raised further, it would be printed by Hydra as well.
            exit_with_error(error, self.config_name, str(CONFIG_DIR), config)

    def _run_checked(self, config: DictConfig) -> Any:
        check_overrides(self.config_name, config)
        _complete_config(config, HydraConfig.get(), self.config_name)
        return self.task(config)

    def _describe(self, error: Exception, config: DictConfig) -> UserError | None:
        return describe_error(error, self.config_name, str(CONFIG_DIR), config)


def _reject_dashes(arguments: Iterable[str]) -> None:
    """Exit if an option was typed with dashes, as in `--model fast` or `-model fast`."""
    groups = {folder.name for folder in CONFIG_DIR.iterdir() if folder.is_dir()}
    for argument in arguments:
        key = argument.lstrip("-").partition("=")[0]
        # `--run` is a flag of Hydra.
        is_option = argument.startswith("-") and argument != "--run"
        if is_option and key.partition(".")[0] in groups | QUOTED_KEYS | {"seed", "test"}:
            exit_with(f"unknown flag {argument}: type {key}=VALUE, without dashes.", 2)


@contextmanager
def _hydra_raises() -> Iterator[None]:
    """Let Hydra raise errors instead of printing them and exiting."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        del os.environ["HYDRA_FULL_ERROR"]
        if before is not None:
            os.environ["HYDRA_FULL_ERROR"] = before


@contextmanager
def _hydra_config_restored() -> Iterator[None]:
    """Restore Hydra's global config, which it leaves set after `--cfg` and multiruns.

    A later training from Python in the same process would take it for the config of a running command.
    """
    before = HydraConfig.instance().cfg
    try:
        yield
    finally:
        HydraConfig.instance().cfg = before


@contextmanager
def _shared_config_store() -> Iterator[None]:
    """Let the copies that Hydra makes of its config repository share one ConfigStore.

    `ConfigLoader.get_group_options` copies the repository at each call, and --help calls it several times for each
    config group. The repository refers to the ConfigStore, which holds the schema of every installed launcher; copying
    it took most of the time of --help. Sharing changes no config: `ConfigStore.load` returns copies of its nodes, and
    composing a config adds none.
    """
    if hasattr(ConfigStore, "__deepcopy__"):  # A command that runs composes another config.
        yield
        return
    ConfigStore.__deepcopy__ = lambda store, memo: store  # type: ignore[attr-defined]
    try:
        yield
    finally:
        del ConfigStore.__deepcopy__  # type: ignore[attr-defined]


@contextmanager
def _included_files_hidden() -> Iterator[None]:
    """Leave files that others include, such as conf/data/_base.yaml, out of the choices that Hydra lists."""
    list_options = ConfigRepository.get_group_options

    def list_choices(*args: Any, **kwargs: Any) -> list[str]:
        return [option for option in list_options(*args, **kwargs) if not option.startswith("_")]

    ConfigRepository.get_group_options = list_choices  # type: ignore[method-assign]
    try:
        yield
    finally:
        ConfigRepository.get_group_options = list_options  # type: ignore[method-assign]


def compose(
    config_name: str = "train", overrides: Iterable[str] = (), *, config_dir: str | Path | None = None
) -> DictConfig:
    """Compose the config of a command as its command line does, for notebooks and tests.

    Args:
        config_name: the command's file in conf/, without the suffix.
        overrides: `key=value` strings in Hydra's grammar.
        config_dir: folder with config groups of your own, as `--config-dir`.

    Returns:
        The config without Hydra's own settings.

    Raises:
        UserError: an override that is not possible, as on the command line.
    """
    search_path = None
    if config_dir is not None:
        folder = Path(config_dir).expanduser().absolute()
        if not folder.is_dir():
            raise UserError(f"config_dir={config_dir} is no folder: give one that holds config groups.")
        search_path = f"hydra.searchpath=[{quote_value(f'file://{folder}')}]"
        overrides = [search_path, *overrides]
    try:
        config = _compose(config_name, list(overrides))
    except Exception as error:
        described = describe_error(error, config_name, str(CONFIG_DIR))
        if described is None or described is error:
            raise
        raise described from error
    if search_path is not None and "flags" in config:
        config.flags = ["--config-dir", str(folder), *(flag for flag in config.flags if flag != search_path)]
    return config


def _compose(config_name: str, overrides: list[str]) -> DictConfig:
    apply_user_settings(config_name, ())
    with _shared_config_store(), hydra.initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        config = hydra.compose(config_name, overrides=overrides, return_hydra_config=True)
        hydra_config = config.hydra
        OmegaConf.set_struct(config, False)
        del config["hydra"]
        OmegaConf.set_struct(config, True)
        _complete_config(config, hydra_config, config_name)
    return config


def _complete_config(config: DictConfig, hydra_config: Any, config_name: str) -> None:
    """Apply `trust`, expand `~` in `runs_dir`, and fill in the `name` of a training and how it was started.

    `trust` is removed from the config, so that no run stores it: only what a user typed is trusted.
    The name is that of the experiment, else that of the model. The overrides are those on the command line; a sweep
    file is replaced by the overrides that it stands for, since each of its jobs is a training by itself.
    """
    with open_dict(config):
        trust_packages(config.pop("trust", None))
    if "runs_dir" in config:
        if config.runs_dir is None:
            raise UserError("runs_dir=null is no directory: give one, or leave it out.", status=2)
        # Unlike pathlib, it keeps a leading ./ and a trailing slash.
        config.runs_dir = os.path.expanduser(config.runs_dir)  # noqa: PTH111
    if "name" in config and config.name is None:
        choices = hydra_config.runtime.choices
        config.name = choices.get("experiment") or choices.get("model")
    if "overrides" in config:
        from fashion_cnn.sweeps.jobs import expand_sweep

        config.overrides = [*map(unquote_override, expand_sweep(hydra_config.overrides.task))]
        config.flags = config_flags(hydra_config, config_name)
        config.working_dir = hydra_config.runtime.cwd


@contextmanager
def closed_output_ends_quietly() -> Iterator[None]:
    """Exit with status 141 and no message when the reader of standard output has closed it, as other programs do."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes standard output again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
