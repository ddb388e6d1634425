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
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fashion_cnn.errors import UserError, causes_of, did_you_mean
from fashion_cnn.runs.damage import KEY_REFERENCE

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
# The classes that each place of a config may name: names of this package, and the modules above. Everything below a
# place, such as the activation of a network, belongs to it. Other places accept all of these classes, since nothing is
# built from there.
_PLACES = {
    "model": "ImageClassifier",
    **dict.fromkeys(
        ("model.network", "network"),  # in config.yaml and in a checkpoint
        "Ensemble FastCNN KerasCNN ResNet TimmBackbone TorchvisionBackbone WideResNet Dropout torch.nn timm.layers",
    ),
    "optimizer": "Muon torch.optim",
    "schedule": "constant cosine linear one_cycle torch.optim.lr_scheduler",
    "loss": "CrossEntropy torch.nn",
    "embedding_loss": "SupervisedContrastive torch.nn",
    "metrics": "torchmetrics.classification",
    "mixing": "CutMix MixUp",
    "distillation": "Distillation",
    "data": "FashionMNISTDataModule ImageFolderDataModule TorchvisionDataModule",
    "data.augmentation": (
        "RandomAffine RandomBlur RandomColour RandomCrop RandomErasing RandomFlip torchvision.transforms.v2"
    ),
    "trainer": "lightning.pytorch",
    "callbacks": (
        "GapMonitor Histograms PredictionCollector TrainingDynamics MovableModelCheckpoint EpochLines ProgressBar "
        "ResumableEarlyStopping SlowdownNotice StopOnDivergence WarmedEMAWeightAveraging lightning.pytorch.callbacks"
    ),
    "logger": "Comet MLflow MetricsCSV TensorBoard WeightsAndBiases lightning.pytorch.loggers",
}
_OWN_NAMES = {word for words in _PLACES.values() for word in words.split() if "." not in word}
# Modules of this package that these may be named by. No other one is imported for the check.
_OWN_MODULES = (
    "analysis.dynamics analysis.monitor analysis.tensorboard data data.augmentation data.fashion_mnist data.folder "
    "data.torchvision_set models models.backbones models.classifier models.ensemble models.fast_cnn models.keras_cnn "
    "models.layers models.losses models.mixing models.optim models.resnet training.callbacks training.checkpoints "
    "training.distillation training.loggers"
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
# Loggers whose options name servers and accounts.
_REMOTE_LOGGERS = ("CometLogger", "MLFlowLogger", "WandbLogger")
# Options of this package's loggers that name servers and accounts.
_REMOTE_OPTIONS = ("artifact_location", "entity", "offline_directory", "tracking_uri", "workspace")
# Options of loggers and callbacks that name files, which must stay inside of the run directory. Positional arguments
# may be any of them.
_FILE_OPTIONS = [
    "save_dir",
    "root_dir",
    "log_dir",
    "sub_dir",
    "dirpath",
    "dir",
    "default_root_dir",
    "filename",
    "name",
    "version",
    "prefix",
    "checkpoint_name",
    "filename_suffix",
    "_args_",
]
# Folders of callbacks and of the trainer, which the libraries look for in the working directory.
_FOLDER_OPTIONS = ("dirpath", "default_root_dir")
# Parts of a text that leads to another place than a folder inside: fsspec, which Lightning opens files with, would
# connect to the address of a URL, or take `::` for a chain of file systems.
_LEADS_OUT = re.compile(r"^[/~]|\$|://|::|(^|[/\\])\.\.($|[/\\])")
# Characters of a text from a run in a message.
_MAX_SHOWN = 200
# Number of definitions of a module that a message lists.
_MAX_LISTED = 10
# Last part of the paths of keys themselves, which is no key of a config.
_NAME = "(key)"
# Keys whose texts name classes: `dataset` is the option of `TorchvisionDataModule`.
_CLASS_KEYS = ("_target_", "dataset")
_typed_classes: set[str] = set()
# Options of typed configs that name files or servers, with their values.
_typed_options: set[tuple[str, str]] = set()


def trust_packages(packages: str | Iterable[str] | None) -> None:
    """Accept the classes of further packages, in this process and in those that it starts.

    Args:
        packages: a name, several names separated by commas, or a list of names.

    Raises:
        UserError: if a name is not that of a top-level package outside the standard library, or there is no such
            package.
    """
    words = [packages] if isinstance(packages, str) else map(str, packages or ())
    names = [name.strip() for word in words for name in word.split(",") if name.strip()]
    for name in names:
        if not name.isidentifier() or name in sys.stdlib_module_names:
            raise UserError(f"trust={name} is not possible: give a package of your own by its first name.", status=2)
        if name not in sys.modules and importlib.util.find_spec(name) is None:
            raise UserError(
                f"trust={name}: there is no module {name}. Start the command in the folder that contains it, or add "
                "this folder to PYTHONPATH.",
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
    roots = (name.partition(".")[0] for name in _class_names(config) if "." in name)
    return [root for root in dict.fromkeys(roots) if root not in libraries]


def resume_command(path: Path | str, packages: Iterable[str], flags: Sequence[str] = ()) -> str:
    """Return the command that resumes a run or a sweep.

    Args:
        path: its directory.
        packages: those whose classes its config names, see `packages_to_trust`.
        flags: arguments that name config files of the user, see `config_flags`.
    """
    names = ",".join(packages)
    trust = [f"trust={names}"] if names else []
    return shlex.join(["python", "-m", "fashion_cnn.train", *flags, *trust, f"resume={path}"])


def python_path_of(packages: Iterable[str], folder: Path) -> str | None:
    """Return the entries of PYTHONPATH through which packages are found, joined as in it; None if none is.

    Args:
        packages: names of packages or modules.
        folder: the folder in which commands are started, where `python -m` finds packages by itself.
    """
    entries = [Path(entry).absolute() for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    used: dict[str, None] = {}
    for package in packages:
        with suppress(ImportError, ValueError):
            spec = importlib.util.find_spec(package)
            places = [*(spec.submodule_search_locations or ()), spec.origin or ""] if spec else []
            parent = Path(places[0]).absolute().parent if places and places[0] else None
            if parent in entries and parent != folder.absolute():
                used[str(parent)] = None
    return os.pathsep.join(used) or None


def trust_classes(config: Any) -> None:
    """Accept the classes, files and servers that a config names, in this process: the user typed them.

    Args:
        config: plain containers or an OmegaConf config.
    """
    _typed_classes.update(_class_names(config))
    _typed_options.update((path, text) for path, text in _texts(_plain(config)) if "${" not in text)


def _class_names(config: Any) -> Iterator[str]:
    return (text for path, text in _texts(_plain(config)) if _key(path) in _CLASS_KEYS)


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


def check_classes(config: Any, source: Path, place: str = "") -> Any:
    """Check each class that a config or a checkpoint names, before any of them is instantiated.

    Args:
        config: plain containers or an OmegaConf config, whose references may lead to any part of the whole config.
        source: the file that it was read from, for the message.
        place: dotted key of the part of the config of a training that it is; empty for the whole one.

    Returns:
        The checked content as plain containers, those of an OmegaConf config with its references resolved.

    Raises:
        UserError: if it names anything but an accepted class, an accepted class in another place than its own, a
            file outside of the run directory or an address, or calls a resolver of OmegaConf.
    """
    _check_texts(plain := _plain(config), source, place)
    if not OmegaConf.is_config(config):
        return plain
    try:
        resolved = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{source}: its settings cannot be read ({reason}).") from error
    _check_texts(resolved, source, place)
    return resolved


def _check_texts(config: Any, source: Path, place: str) -> None:
    texts = [*_texts(config, place)]
    for path, text in texts:
        key, shown = _key(path), _shown(text)
        names_class = key in _CLASS_KEYS
        if "${" in KEY_REFERENCE.sub("", text) or (names_class and "${" in text):
            raise UserError(f"{source}: {key}={shown} is not accepted in the settings of a run: write its value.")
        if names_class and not (_is_data_set(text) if key == "dataset" else _is_accepted(text)):
            raise UserError(f"{source} names {shown}, {_remedy(text)}")
        if key == "_target_" and not _belongs_to(text, path):
            raise UserError(
                f"{source} names {text} as {path.rpartition('.')[0]}, where no such class belongs: take it from a copy "
                "of the run."
            )
        if key == "_target_" and path.startswith("logger.") and text.endswith(_REMOTE_LOGGERS):
            _check_typed([pair for pair in texts if pair[0].startswith(path.removesuffix("_target_"))], source)
        is_folder = key in _FOLDER_OPTIONS and _place(path) in ("callbacks", "trainer")
        if is_folder or (key in _REMOTE_OPTIONS and _place(path) == "logger"):
            _check_typed([(path, text)], source)
        # A reference may lead anywhere, and its value may change after this check.
        elif key in _FILE_OPTIONS and _LEADS_OUT.search(text) and (path, text) not in _typed_options:
            raise UserError(f"{source}: {key}={shown} leads out of the run directory: write a name inside of it.")


def _shown(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"


def _check_typed(options: Iterable[tuple[str, str]], source: Path) -> None:
    """Raise UserError for options of a stored config that name a folder or a server and that the user did not type."""
    untyped = [pair for pair in options if pair not in _typed_options and _key(pair[0]) != _NAME]
    if untyped:
        raise UserError(
            f"{source} names a folder or a server that may be anyone's. If it is yours, type it, too: "
            f"{shlex.join(f'++{path}={text}' for path, text in untyped)}"
        )


def _plain(config: Any) -> Any:
    return OmegaConf.to_container(config) if OmegaConf.is_config(config) else config


def _texts(part: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """All texts in nested containers, each with the path of its key, such as `callbacks.best.filename`."""
    if isinstance(part, Mapping):
        for name, value in part.items():
            yield f"{path}.{_NAME}", str(name)
            yield from _texts(value, f"{path}.{name}" if path else str(name))
    elif isinstance(part, list | tuple):
        for value in part:
            yield from _texts(value, path)
    elif isinstance(part, str):
        yield path, part
    elif _key(path) == "_target_" and part is not None:
        yield path, repr(part)


def _key(path: str) -> str:
    return path.rpartition(".")[2]


def _place(path: str) -> str | None:
    """The place in `_PLACES` that a path belongs to, the longest one; None for any other path."""
    # A remedy changes the setting that its key names.
    path = path.removeprefix("remedy.set.")
    return max((place for place in _PLACES if f"{path}.".startswith(f"{place}.")), key=len, default=None)


def _belongs_to(name: str, path: str) -> bool:
    """Return whether an accepted class may be named at a path; those of other packages may be anywhere."""
    module_name, _, class_name = name.rpartition(".")
    is_own = module_name.startswith("fashion_cnn.")
    if not (is_own or module_name in _LIBRARY_MODULES) or (path, name) in _typed_options:
        return True
    place = _place(path)
    return place is None or (class_name if is_own else module_name) in _PLACES[place].split()


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
    if module_name.partition(".")[2] not in _OWN_MODULES.split() or name not in _OWN_NAMES:
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
    if root in libraries or root in sys.stdlib_module_names or not root.isidentifier() or len(root) > _MAX_SHOWN:
        return "which is not a class that a run may name. The file was damaged or made to run a program."
    if root in _trusted_packages():
        return f"which {why_not_defined(path)}"
    return (
        f"which is a class of another package. If you trust it, add trust={root}, or export {TRUST_VARIABLE}={root}; "
        f'in Python: fashion_cnn.load(…, trust="{root}").'
    )


def why_not_defined(path: str) -> str:
    """Explain why the path of a class or function cannot be imported, or is no definition: text after "it"."""
    module_name, _, name = path.rpartition(".")
    if not module_name:
        return "is not the class of a module."
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        return f"cannot be imported: {error}."
    if hasattr(module, name):
        return f"{module_name} only imports: name the place where it is defined."
    public = {key: value for key, value in vars(module).items() if not key.startswith("_")}
    own = [
        key for key, value in public.items() if getattr(value, "__module__", None) == module_name and callable(value)
    ]
    content = f" It defines {', '.join(own)}." if 0 < len(own) <= _MAX_LISTED else ""
    return f"cannot be imported: {module_name} has no {name}.{did_you_mean(name, public)}{content}"
