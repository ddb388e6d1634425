"""Allow-list of the classes that a run, a checkpoint or a catalogue of someone else may name.

A run's config and its checkpoints name the classes that they are rebuilt with, as `_target_`. Such a name could also be
that of a function which runs a program. Everything that is read from a run is therefore checked before anything is
instantiated: only the public classes listed here, and those of packages that the user trusts, are accepted.
"""

import importlib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fashion_cnn.errors import UserError, causes_of, did_you_mean

# Environment variable with the names of further trusted packages, separated by commas: the option trust adds to it.
TRUST_VARIABLE = "FASHION_CNN_TRUST"
# Public modules of the libraries, and the base class that an accepted class of each one has.
_LIBRARY_MODULES = {
    "torch.nn": "torch.nn.Module",
    "torch.optim": "torch.optim.Optimizer",
    "torch.optim.lr_scheduler": "torch.optim.lr_scheduler.LRScheduler",
    "torchvision.transforms.v2": "torch.nn.Module",
    "timm.layers": "torch.nn.Module",
    "torchmetrics.classification": "torchmetrics.Metric",
    "lightning.pytorch": "lightning.pytorch.Trainer",
    "lightning.pytorch.callbacks": "lightning.pytorch.Callback",
    "lightning.pytorch.loggers": "lightning.pytorch.loggers.Logger",
}
# Classes and schedules of this package, by name: what conf/ offers and what a user can put in its place.
_OWN_NAMES = (
    "FashionMNISTDataModule ImageFolderDataModule TorchvisionDataModule RandomAffine RandomBlur RandomColour "
    "RandomCrop RandomErasing RandomFlip ImageClassifier Ensemble FastCNN KerasCNN ResNet TorchvisionBackbone "
    "WideResNet Dropout CutMix MixUp CrossEntropy SupervisedContrastive Distillation Muon constant cosine linear "
    "one_cycle GapMonitor Histograms PredictionCollector TrainingDynamics MovableModelCheckpoint MetricsCSV "
    "TensorBoard EpochLines ProgressBar ResumableEarlyStopping StopOnDivergence WarmedEMAWeightAveraging "
)
# Modules of this package that these may be named by. No other one is imported for the check.
_OWN_MODULES = (
    "analysis.dynamics analysis.monitor analysis.tensorboard data data.augmentation data.fashion_mnist data.folder "
    "data.torchvision_set models models.classifier models.ensemble models.fast_cnn models.keras_cnn models.layers "
    "models.losses models.mixing models.optim models.resnet models.torchvision_backbone training.callbacks "
    "training.checkpoints training.distillation training.loggers"
)
# Data sets of torchvision that `TorchvisionDataModule` may read: their classes only read files below `data.root`.
_DATA_SETS = "MNIST FashionMNIST KMNIST EMNIST QMNIST USPS SVHN CIFAR10 CIFAR100 STL10"
# Callbacks of Lightning. All others write or delete files at places that their state or their arguments name.
_CALLBACKS = (
    "BackboneFinetuning BatchSizeFinder DeviceStatsMonitor EMAWeightAveraging EarlyStopping "
    "GradientAccumulationScheduler LearningRateFinder LearningRateMonitor ModelPruning ModelSummary RichModelSummary "
    "RichProgressBar StochasticWeightAveraging TQDMProgressBar ThroughputMonitor Timer WeightAveraging"
)
_LOGGERS = "CSVLogger CometLogger MLFlowLogger TensorBoardLogger WandbLogger"
# Options of loggers and callbacks that name files, which must stay inside of the run directory.
_FILE_OPTIONS = "save_dir root_dir log_dir sub_dir dirpath dir filename name version prefix"
# References to other keys of the same config, such as ${data.root}. Everything else in ${} calls a resolver.
_KEY_REFERENCE = re.compile(r"\$\{[\w.]+\}")
# Keys whose texts name classes: `dataset` is the option of `TorchvisionDataModule`.
_CLASS_KEYS = ("_target_", "dataset")
_typed_classes: set[str] = set()


def trust_packages(packages: str | Iterable[str] | None) -> None:
    """Accept the classes of further packages, in this process and in those that it starts.

    Args:
        packages: a name, several names separated by commas, or a list of names.

    Raises:
        UserError: for anything but top-level packages of other people, and for those that are not there.
    """
    words = [packages] if isinstance(packages, str) else map(str, packages or ())
    names = [name.strip() for word in words for name in word.split(",") if name.strip()]
    for name in names:
        if not name.isidentifier() or name in sys.stdlib_module_names:
            raise UserError(f"trust={name} is not possible: give a package of your own by its first name.", status=2)
        if name not in sys.modules and importlib.util.find_spec(name) is None:
            raise UserError(
                f"trust={name}: there is no module {name}. Start the command in its folder, or add this to PYTHONPATH.",
                status=2,
            )
    if names:
        os.environ[TRUST_VARIABLE] = ",".join(dict.fromkeys([*_trusted_packages(), *names]))


def _trusted_packages() -> list[str]:
    names = (name.strip() for name in os.environ.get(TRUST_VARIABLE, "").split(","))
    return [name for name in names if name and name not in sys.stdlib_module_names]


def packages_to_trust(config: Any) -> list[str]:
    """List the packages of other people whose classes a config names: commands that open its run need `trust=`.

    Args:
        config: plain containers or an OmegaConf config.
    """
    libraries = {"fashion_cnn", *(name.partition(".")[0] for name in _LIBRARY_MODULES), *sys.stdlib_module_names}
    roots = (path.partition(".")[0] for key, path in _texts(_plain(config)) if key in _CLASS_KEYS and "." in path)
    return [root for root in dict.fromkeys(roots) if root not in libraries]


def trust_classes(config: Any) -> None:
    """Accept the classes that a config names, in this process: the user typed them.

    Args:
        config: plain containers or an OmegaConf config.
    """
    _typed_classes.update(path for key, path in _texts(_plain(config)) if key in _CLASS_KEYS)


def instantiate(config: Any, *args: Any, **settings: Any) -> Any:
    """Build the object that a config describes with Hydra's `instantiate`, which wraps every error in its own.

    Raises:
        UserError: the one that a class raised, unwrapped.
    """
    # Imported here: the commands that only list runs do not need it.
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate as build

    try:
        return build(config, *args, **settings)
    except InstantiationException as error:
        cause = next((cause for cause in causes_of(error) if isinstance(cause, UserError)), None)
        if cause is None:
            raise
        raise cause from None


def check_classes(config: Any, source: Path) -> Any:
    """Check each class that a config or a checkpoint names, before any of them is instantiated.

    Args:
        config: plain containers or an OmegaConf config, whose references may lead to any part of the whole config.
        source: the file that it was read from, for the message.

    Returns:
        The checked content as plain containers, those of an OmegaConf config with its references resolved.

    Raises:
        UserError: if it names anything but an accepted class, or calls a resolver of OmegaConf.
    """
    _check_texts(plain := _plain(config), source)
    if not OmegaConf.is_config(config):
        return plain
    try:
        resolved = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{source}: its settings cannot be read ({reason}).") from error
    _check_texts(resolved, source)
    return resolved


def _check_texts(config: Any, source: Path) -> None:
    for key, text in _texts(config):
        names_class = key in _CLASS_KEYS
        if "${" in _KEY_REFERENCE.sub("", text) or (names_class and "${" in text):
            raise UserError(f"{source}: {key}={text} is not accepted in the settings of a run: write its value.")
        if names_class and not (_is_data_set(text) if key == "dataset" else _is_accepted(text)):
            raise UserError(f"{source} names {text}, {_remedy(text)}")
        # A reference may lead anywhere, and its value may change after this check.
        leads_out = text.startswith(("/", "~")) or "${" in text or ".." in re.split(r"[/\\]", text)
        if key in _FILE_OPTIONS.split() and leads_out:
            raise UserError(f"{source}: {key}={text} leads out of the run directory: write a name inside of it.")


def _plain(config: Any) -> Any:
    return OmegaConf.to_container(config) if OmegaConf.is_config(config) else config


def _texts(part: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """All texts in nested containers, each with its key in the innermost mapping."""
    if isinstance(part, Mapping):
        for name, value in part.items():
            yield "key", str(name)
            yield from _texts(value, str(name))
    elif isinstance(part, list | tuple):
        for value in part:
            yield from _texts(value, key)
    elif isinstance(part, str):
        yield key, part
    elif key == "_target_" and part is not None:
        yield key, repr(part)


def _is_accepted(path: str) -> bool:
    module_name, _, name = path.rpartition(".")
    if module_name in _LIBRARY_MODULES:
        return _is_library_class(module_name, name)
    if module_name.partition(".")[0] == "fashion_cnn":
        return path in _typed_classes or _is_own(module_name, name)
    return path in _typed_classes or _is_trusted(path)


def _is_data_set(path: str) -> bool:
    module_name, _, name = path.rpartition(".")
    of_torchvision = module_name == "torchvision.datasets" and name in _DATA_SETS.split()
    return of_torchvision or path in _typed_classes or _is_trusted(path)


def _is_library_class(module_name: str, name: str) -> bool:
    if importlib.util.find_spec(module_name.partition(".")[0]) is None or name.startswith("_"):
        return False
    listed = {"lightning.pytorch.callbacks": _CALLBACKS, "lightning.pytorch.loggers": _LOGGERS}.get(module_name)
    if listed is not None and name not in listed.split():
        return False
    base_module, _, base_name = _LIBRARY_MODULES[module_name].rpartition(".")
    base = getattr(importlib.import_module(base_module), base_name)
    candidate = vars(importlib.import_module(module_name)).get(name)
    return inspect.isclass(candidate) and issubclass(candidate, base)


def _is_own(module_name: str, name: str) -> bool:
    if module_name.partition(".")[2] not in _OWN_MODULES.split() or name not in _OWN_NAMES.split():
        return False
    candidate = vars(importlib.import_module(module_name)).get(name)
    return getattr(candidate, "__module__", "").startswith("fashion_cnn.")


def _is_trusted(path: str) -> bool:
    """Return whether `path` is a class or function that a trusted package itself defines."""
    root = path.partition(".")[0]
    if root not in _trusted_packages():
        return False
    module_name, _, name = path.rpartition(".")
    try:
        candidate = getattr(importlib.import_module(module_name or root), name, None)
    except ImportError:
        return False
    return (inspect.isclass(candidate) or inspect.isfunction(candidate)) and candidate.__module__.partition(".")[
        0
    ] == root


def _remedy(path: str) -> str:
    root = path.partition(".")[0]
    libraries = {"fashion_cnn", *(name.partition(".")[0] for name in _LIBRARY_MODULES)}
    if root in libraries or root in sys.stdlib_module_names or not root.isidentifier():
        return "which is not a class that a run may name. The file was damaged or made to run a program."
    if root in _trusted_packages():
        return f"which {_why_not_defined(path)}"
    return (
        f"which is a class of another package. If you trust it, add trust={root}, or export {TRUST_VARIABLE}={root}; "
        f'in Python: fashion_cnn.load(…, trust="{root}").'
    )


def _why_not_defined(path: str) -> str:
    """Explain why a path is no class or function that its trusted package defines."""
    module_name, _, name = path.rpartition(".")
    if not module_name:
        return "is not the class of a module."
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        return f"cannot be imported: {error}."
    if hasattr(module, name):
        return f"{module_name} only imports: name the place where it is defined."
    own = [
        public
        for public, value in vars(module).items()
        if not public.startswith("_") and getattr(value, "__module__", None) == module_name and callable(value)
    ]
    content = f" It defines {', '.join(own)}." if own else ""
    return f"cannot be imported: {module_name} has no {name}.{did_you_mean(name, own)}{content}"
