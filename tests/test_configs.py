"""Every file under conf/ composes, and what it describes can be built and used."""

import pytest
import torch
from conftest import TINY_DATA

from fashion_cnn.analysis.settings import changed_settings
from fashion_cnn.cli.main import CONFIG_DIR, compose
from fashion_cnn.errors import UserError, install_command
from fashion_cnn.training import build

CHOICES = [
    (file.parent.relative_to(CONFIG_DIR).as_posix(), file.stem)
    for file in sorted(CONFIG_DIR.rglob("*.yaml"))
    # Samplers and pruners of tune/ have trainings of their own (test_tuning.py); `_base` is only included by others.
    if file.parent.parent == CONFIG_DIR and file.parent.name != "hydra" and file.stem[0] != "_"
]
# Fixture with the data of each choice of data, and of each experiment that needs data other than the tiny ones.
DATA = {
    "logos": "picture_folder",
    "fashion_mnist": "fashion_mnist_root",
    "image_folder": "picture_folder",
    "kmnist": "torchvision_root",
    "emnist": "torchvision_root",
}
# Optional packages that a choice needs.
PACKAGES = {("logger", "wandb"): ["wandb"], ("logger", "mlflow"): ["mlflow"], ("logger", "many"): ["wandb", "mlflow"]}


@pytest.mark.parametrize("file", sorted(CONFIG_DIR.glob("*.yaml")), ids=lambda file: file.stem)
def test_each_commands_config_composes(file):
    assert compose(file.stem)


@pytest.mark.parametrize(("group", "choice"), CHOICES, ids=["-".join(choice) for choice in CHOICES])
def test_each_choice_builds_data_module_and_trainer(group, choice, tmp_path, request):
    for package in PACKAGES.get((group, choice), ()):
        pytest.importorskip(package, reason=f"{package} is not installed: {install_command(package)}")
    # A choice of data gets images of its own.
    fixture = DATA.get(choice)
    tiny_data = [] if fixture else [part for part in TINY_DATA if part.startswith("data")]
    if (group, choice) == ("data", "torchvision"):
        fixture, tiny_data = "torchvision_root", ["data.dataset=torchvision.datasets.KMNIST"]
    config = compose(overrides=[f"{group}={choice}", *tiny_data, "trainer.accelerator=cpu"])
    if fixture:
        config.data.root = str(request.getfixturevalue(fixture))
    if fixture == "torchvision_root":
        config.data.val_size = 47
    data = build.data(config)
    module = build.module(config, data)
    trainer = build.trainer(config, data, tmp_path)
    assert trainer.max_epochs >= 1
    batch = next(iter(data.train_dataloader()))
    images = data.normalise(batch.images)
    for augment in data.augmentation:
        images = augment(images)
    assert torch.isfinite(module(images)).all()


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "sgd"])
@pytest.mark.parametrize("schedule", ["onecycle", "cosine", "linear", "constant"])
def test_optimizers_and_schedules_combine_freely(optimizer, schedule):
    from types import SimpleNamespace

    config = compose(overrides=[*TINY_DATA, f"optimizer={optimizer}", f"schedule={schedule}"])
    module = build.module(config, build.data(config))
    module._trainer = SimpleNamespace(estimated_stepping_batches=10)
    built = module.configure_optimizers()
    assert built["lr_scheduler"]["interval"] == "step"
    assert built["optimizer"].defaults["lr"] == config.optimizer.lr


@pytest.mark.parametrize(
    ("overrides", "changed"),
    [
        ([], []),
        (["runs_dir=elsewhere", "data.root=elsewhere", "test=false", "~callbacks.bar"], []),
        (["trainer=smoke"], ["limit_train_batches=40", "limit_val_batches=2", "max_epochs=2"]),
        (["data.augmentation=null", "~callbacks.ema"], ["callbacks.ema=null", "data.augmentation=null"]),
        (["optimizer=sgd", "optimizer.lr=0.3"], ["optimizer=SGD"]),
        (
            ["model.network.widths=[8,16,24]", "trainer.benchmark=true"],
            ["model.network.widths=[8,16,24]", "benchmark=true"],
        ),
    ],
    ids=str,
)
def test_the_settings_that_differ_from_the_default_are_those_that_affect_training(overrides, changed):
    differing = changed_settings(compose(overrides=overrides), compose())
    assert [setting.removeprefix("trainer.") for setting in differing] == changed


def test_compose_finds_config_groups_of_the_user(tmp_path):
    folder = tmp_path / "my, conf"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "own.yaml").write_text("network:\n  _target_: tiny_parts.PlainNetwork\n  width: 48\n")
    config = compose("train", ["model=own", "model.network.width=16"], config_dir=folder)
    assert config.name == "own"
    assert config.model.network == {"_target_": "tiny_parts.PlainNetwork", "width": 16}
    assert list(config.flags) == ["--config-dir", str(folder)], "commands that are suggested find them too"
    with pytest.raises(UserError, match=r"config_dir=.* is no folder"):
        compose("train", config_dir=tmp_path / "nowhere")


def test_the_augmentations_of_another_data_set_do_not_differ(tmp_path):
    (tmp_path / "data").mkdir()
    file = tmp_path / "data" / "own.yaml"
    file.write_text("_target_: tiny_images.TinyDataModule\nmean: null\nval_size: 32\n")
    assert changed_settings(compose("train", ["data=own"], config_dir=tmp_path), compose()) == ["data=TinyDataModule"]
    file.write_text("_target_: tiny_images.TinyDataModule\naugmentation:\n  flip: null\n")
    changed = changed_settings(compose("train", ["data=own"], config_dir=tmp_path), compose())
    assert changed == ["data.augmentation=null", "data=TinyDataModule"], "they are switched off in its file"


def test_an_option_that_another_config_leaves_to_its_class_does_not_differ():
    config = compose(overrides=["~data.augmentation.flip.p", "data.augmentation.crop=null"])
    assert changed_settings(config, compose()) == ["data.augmentation.crop=null"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.lrr=1", "unknown option 'optimizer.lrr'. Did you mean optimizer.lr?"),
        ("model=smal", "model=smal does not exist. Did you mean small?"),
        ("optimizer.lr=[", "'optimizer.lr=[' is not a valid override: its [ is not closed."),
    ],
)
def test_a_mistyped_override_from_python_has_the_message_of_the_command_line(override, message):
    with pytest.raises(UserError) as error:
        compose("train", [override])
    assert str(error.value).startswith(message)
    assert "viable" not in str(error.value)
