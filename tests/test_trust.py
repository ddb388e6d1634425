"""Runs, checkpoints and catalogues that name other things than classes of the libraries."""

import importlib
import importlib.util
import io
import os
import shutil
import zipfile
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_images
import torch
import yaml
from conftest import REPOSITORY
from omegaconf import OmegaConf

import fashion_cnn
from fashion_cnn import predict, search, train
from fashion_cnn.cli.main import compose
from fashion_cnn.errors import UserError
from fashion_cnn.inference.network import instantiate_data, read_checkpoint
from fashion_cnn.models import ImageClassifier
from fashion_cnn.retrieval import catalogue
from fashion_cnn.runs import Run
from fashion_cnn.runs.trust import check_classes, trust_classes, trust_packages
from fashion_cnn.sweeps.sweep import add_earlier_values, resumed_sweep
from fashion_cnn.training.checkpoints import MovableModelCheckpoint
from fashion_cnn.training.resume import restore_config

_FOREIGN_PATHS = (
    "os.system os.popen os.remove posix.system subprocess.run subprocess.Popen subprocess.check_output shutil.rmtree "
    "builtins.eval builtins.exec builtins.open builtins.__import__ runpy.run_path runpy.run_module "
    "code.InteractiveConsole pickle.load pathlib.Path.write_text webbrowser.open ctypes.CDLL importlib.import_module "
    "antigravity.webbrowser.open torch.load torch.save torch.hub.load torch.utils.collect_env.run "
    "torch.utils.cpp_extension.load_inline torch.jit.load torch.nn.modules.module.torch.load torch.nn.Module.__init__ "
    "torch.nn.functional.relu torch.optim.Optimizer.step torch.nn.parallel.torch.load torch.distributed.run.main "
    "torch.package.PackageImporter torch.fx.GraphModule torch.optim.lr_scheduler.warnings.warn "
    "torch.serialization.load torch.multiprocessing.spawn lightning.fabric.utilities.cloud_io._load "
    "lightning.pytorch.cli.LightningCLI lightning.pytorch.callbacks.os.system torchvision.datasets.utils.os.mkdir "
    "torchvision.datasets.utils.download_url torchvision.io.write_file torchvision.datasets.folder.os.remove "
    "torchvision.datasets.DatasetFolder.find_classes torchvision.models.resnet18 "
    "fashion_cnn.runs.files.write_atomically fashion_cnn.runs.files.shutil.rmtree fashion_cnn.train.main "
    "fashion_cnn.errors.did_you_mean fashion_cnn.runs.trust.trust_classes fashion_cnn.models.resnet.nn.Module "
    "hydra.utils.instantiate hydra.utils.get_method omegaconf.OmegaConf.register_new_resolver "
    "matplotlib.pyplot.savefig numpy.load numpy.save yaml.unsafe_load PIL.Image.open tiny_images.torch.load "
    "my_package.Network"
)


@pytest.mark.parametrize("path", _FOREIGN_PATHS.split())
@pytest.mark.parametrize(
    "place",
    [
        lambda path: {"_target_": path},
        lambda path: {
            "model": {"network": {"_target_": "fashion_cnn.models.ResNet", "activation": {"_target_": path}}}
        },
        lambda path: {"callbacks": [{"_target_": path, "_partial_": True}]},
        lambda path: {"_target_": "torch.nn.Sequential", "_args_": [{"_target_": path}]},
        lambda path: {"_target_": "fashion_cnn.data.TorchvisionDataModule", "dataset": path},
    ],
    ids=["alone", "nested", "partial", "argument", "data set"],
)
def test_a_config_that_names_anything_but_an_accepted_class_is_refused(path, place):
    with pytest.raises(UserError, match="names " + path.replace(".", r"\.")):
        check_classes(place(path), Path("config.yaml"))


@pytest.mark.parametrize(
    "config",
    [
        {"_target_": "${other}", "other": "os.system"},
        {"lr": "${oc.env:HOME}"},
        {"lr": "${oc.decode:'1'}"},
        {"lr": "${${a}:b}"},
        {"_target_": ["os.system"]},
        {"_target_": {"_target_": "os.system"}},
        {"_target_": 3},
    ],
)
def test_resolvers_and_names_that_are_no_text_are_refused(config):
    with pytest.raises(UserError):
        check_classes(config, Path("config.yaml"))


@pytest.mark.parametrize("path", ["a" * 10**5, "my_package." + "x." * 10**5, "." * 10**5, "${a}" * 10**5])
def test_a_message_is_short_whatever_a_config_names(path):
    for config in ({"_target_": path}, {"data": {"dataset": path}}, {"logger": {"save_dir": f"/{path}"}}):
        with pytest.raises(UserError) as raised:
            check_classes(config, Path("config.yaml"))
        assert len(str(raised.value)) < 1000


def test_references_to_keys_are_accepted():
    check_classes({"data": {"root": "data", "copy": "${data.root}/x"}}, Path("config.yaml"))


def targets(part):
    if isinstance(part, dict):
        return [part[key] for key in part if key == "_target_"] + [t for value in part.values() for t in targets(value)]
    return [t for value in part for t in targets(value)] if isinstance(part, list) else []


@pytest.mark.parametrize(
    "path",
    sorted(
        {
            target
            for file in (REPOSITORY / "conf").rglob("*.yaml")
            for target in targets(yaml.safe_load(file.read_text()))
            if not target.startswith(("optuna.", "fashion_cnn.cli.", "?"))
        }
    ),
)
def test_each_class_of_conf_is_accepted(path):
    check_classes({"_target_": path}, Path("config.yaml"))


@pytest.mark.parametrize(
    "path",
    [
        "torch.nn.GELU",
        "torch.optim.RMSprop",
        "torch.optim.lr_scheduler.StepLR",
        "lightning.pytorch.callbacks.LearningRateMonitor",
        "lightning.pytorch.callbacks.StochasticWeightAveraging",
        "lightning.pytorch.loggers.MLFlowLogger",
        "torchvision.transforms.v2.RandomRotation",
        "fashion_cnn.models.resnet.ResNet",
    ],
)
def test_public_classes_of_the_libraries_are_accepted(path):
    check_classes({"_target_": path}, Path("config.yaml"))


def test_a_trusted_package_is_accepted_with_what_it_defines_itself(tmp_path, monkeypatch):
    (tmp_path / "my_networks.py").write_text("import os\nclass Net:\n    pass\ndef make():\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    config = {"_target_": "my_networks.Net"}
    with pytest.raises(UserError, match="add trust=my_networks, or export FASHION_CNN_TRUST=my_networks"):
        check_classes(config, Path("config.yaml"))
    monkeypatch.setenv("FASHION_CNN_TRUST", "other, my_networks")
    check_classes(config, Path("config.yaml"))
    check_classes({"_target_": "my_networks.make"}, Path("config.yaml"))
    for path, reason in {
        "my_networks.os": "my_networks only imports: name the place where it is defined",
        "my_networks.Nett": r"my_networks has no Nett\. Did you mean Net\? It defines Net, make\.",
        "my_networks.os.system": "cannot be imported: No module named 'my_networks.os'",
        "my_networks": "names my_networks, which is not the class of a module",
    }.items():
        with pytest.raises(UserError, match=reason):
            check_classes({"_target_": path}, Path("config.yaml"))


@pytest.mark.parametrize("trust", ["my_networks", "other,my_networks", ["other", "my_networks"]])
def test_the_option_trust_accepts_packages_in_this_process_and_its_children(trust, tmp_path, monkeypatch):
    for name in ("other", "my_networks"):
        (tmp_path / f"{name}.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("FASHION_CNN_TRUST", "before")
    trust_packages(trust)
    names = os.environ["FASHION_CNN_TRUST"].split(",")
    assert names[0] == "before"
    assert "my_networks" in names[1:]


@pytest.mark.parametrize("trust", ["subprocess", "my_package.networks", "a b", ["torch", "os"], "no_module"])
def test_nothing_but_a_package_of_the_user_can_be_trusted(trust, monkeypatch):
    monkeypatch.setenv("FASHION_CNN_TRUST", "before")
    with pytest.raises(UserError, match="trust="):
        trust_packages(trust)
    monkeypatch.setenv("FASHION_CNN_TRUST", "subprocess")
    with pytest.raises(UserError, match=r"names subprocess\.Popen"):
        check_classes({"_target_": "subprocess.Popen"}, Path("config.yaml"))


@pytest.mark.parametrize("file", sorted((REPOSITORY / "conf").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_command_takes_trust_and_stores_it_nowhere(file, monkeypatch):
    monkeypatch.setenv("FASHION_CNN_TRUST", "")
    config = compose(file.stem, ["trust='tiny_parts,tiny_images'"])
    assert "trust" not in config
    assert os.environ["FASHION_CNN_TRUST"] == "tiny_parts,tiny_images"


def test_commands_and_load_open_a_run_of_a_trusted_package(shop_run, tmp_path, command, monkeypatch):
    (tmp_path / "other_networks.py").write_text(
        "from fashion_cnn.models import ResNet\nclass Mine(ResNet):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    trusted = os.environ["FASHION_CNN_TRUST"]
    monkeypatch.setenv("FASHION_CNN_TRUST", trusted)
    run = Path(shutil.copytree(shop_run.path, tmp_path / "run"))
    checkpoint = torch.load(run / "checkpoints" / shop_run.weights.name, weights_only=True)
    checkpoint["hyper_parameters"]["network"]["_target_"] = "other_networks.Mine"
    torch.save(checkpoint, run / "checkpoints" / shop_run.weights.name)
    picture = next(iter((REPOSITORY / "docs").rglob("*.png")))
    status, _, err = command(predict.main, f"run={run}", f"images={picture}")
    assert status == 1
    assert "add trust=other_networks, or export FASHION_CNN_TRUST=other_networks" in err
    assert command(predict.main, f"run={run}", f"images={picture}", "trust=other_networks")[0] == 0
    monkeypatch.setenv("FASHION_CNN_TRUST", trusted)
    with pytest.raises(UserError, match="add trust=other_networks") as error:
        fashion_cnn.load(run)
    assert 'in Python: fashion_cnn.load(…, trust="other_networks").' in str(error.value)
    fashion_cnn.load(run, trust="other_networks")


def store_sweep(folder, hydra=(), task=(), params=None):
    stored = {
        "overrides": {"hydra": [*hydra], "task": [*task, "seed=0,1"]},
        "sweeper": {"params": params},
        "runtime": {"config_sources": []},
        "job": {"config_name": "train"},
    }
    (folder / "multirun.yaml").write_text(yaml.safe_dump({"hydra": stored}))


def stored_sweep(folder, hydra=(), task=()):
    store_sweep(folder, hydra, task)
    return resumed_sweep([f"resume={folder}"])


@pytest.mark.parametrize(
    "override",
    [
        "+callbacks.x._target_=torch.utils.collect_env.run",
        "model.network={_target_:subprocess.run,args:x}",
        "model.network={_target_:subprocess.run},{_target_:fashion_cnn.models.ResNet}",
        "+callbacks.x={a:[{_target_:os.system}]}",
        "data.dataset=torchvision.datasets.utils.os.mkdir",
        "+callbacks.x=${oc.create:${y}}",
        "trust=subprocess",
        "experiment=../../elsewhere/evil",
        "experiment=small,/tmp/evil",
        "hydra.searchpath=[file:///tmp/evil]",
        "hydra.callbacks.x._target_=os.system",
        "hydra.launcher._target_=os.system",
        "hydra.launcher.setup=[rm]",
        "hydra.launcher.python=evil",
        "hydra.launcher.partition='gpu\ntouch evil #'",
        "hydra.launcher.account=$(evil)",
        "hydra.launcher.ray.init.address=evil:6379",
        "name=${oc.env:HOME}",
        "optimizer.lr=1,2)",
    ],
)
def test_a_stored_sweep_executes_nothing_that_it_names(tmp_path, override):
    with pytest.raises(UserError, match=r"multirun\.yaml"):
        stored_sweep(tmp_path, *([[override], []] if override.startswith("hydra") else [[], [override]]))


EXECUTED = "[{_target_:torch.utils.collect_env.run,command:x}]"


@pytest.mark.parametrize("place", ["task", "params"])
@pytest.mark.parametrize("further", [EXECUTED, "../../elsewhere/evil", "'/elsewhere/evil'"])
def test_values_added_from_a_stored_sweep_are_checked(tmp_path, place, further):
    stored = {"task": [f"model=tiny,{further}"]} if place == "task" else {"params": {"model": f"tiny,{further}"}}
    store_sweep(tmp_path, **stored)
    with pytest.raises(UserError, match=r"multirun\.yaml"):
        add_earlier_values(tmp_path, ["model=tiny,small", "seed=0,1"], {})
    with pytest.raises(UserError, match=r"multirun\.yaml"):
        add_earlier_values(tmp_path, ["seed=0,1"], {"model": "tiny,small"})


def test_values_of_a_stored_sweep_that_the_user_types_again_are_kept(tmp_path):
    classes = ["loss={_target_:typed_package.A},{_target_:typed_package.B}", "trust='typed_package'"]
    store_sweep(tmp_path, task=classes, params={"optimizer": "adamw,sgd"})
    task = add_earlier_values(tmp_path, [classes[0], "seed=0"], {"optimizer": "adamw"})
    assert task == ["optimizer=adamw,sgd", classes[0], "seed=0,1"]


def test_a_resumed_sweep_keeps_values_of_the_machine_that_are_not_typed_again(tmp_path):
    store_sweep(tmp_path, task=["threads=1,2"])
    assert add_earlier_values(tmp_path, ["seed=0,1"], {}) == ["threads=1,2", "seed=0,1"]


def test_a_stored_sweep_reads_no_config_files_that_the_user_did_not_name(tmp_path):
    stored = {
        "overrides": {"hydra": [], "task": ["model=own", "seed=0,1"]},
        "runtime": {"config_sources": [{"provider": "command-line", "path": "/elsewhere"}]},
        "job": {"config_name": "train"},
    }
    (tmp_path / "multirun.yaml").write_text(yaml.safe_dump({"hydra": stored}))
    with pytest.raises(UserError, match="if you trust them, add --config-dir /elsewhere"):
        resumed_sweep([f"resume={tmp_path}"])
    arguments = resumed_sweep(["--config-dir", "/elsewhere", f"resume={tmp_path}"])
    assert arguments[:-1] == ["-m", "--config-dir", "/elsewhere", "model=own", "seed=0,1"]


def test_a_stored_sweep_of_ordinary_settings_is_resumed(tmp_path):
    hydra = ["hydra/launcher=submitit", "hydra.launcher.partition=gpu", "hydra.launcher.timeout_min=240"]
    task = ["model=tiny", "optimizer.lr=0.1,0.2", "data.root='../data'", "model.network.widths=[8,16],[16,32]"]
    task += ["data._target_=fashion_cnn.data.FashionMNISTDataModule", "~callbacks.ema", "runs_dir=/tmp/runs"]
    arguments = stored_sweep(tmp_path, hydra, task)
    assert arguments[:-1] == ["-m", *hydra, *task, "seed=0,1"]


def test_classes_that_the_user_typed_are_accepted_in_this_process(monkeypatch):
    monkeypatch.setattr("fashion_cnn.runs.trust._typed_classes", set())
    config = {"callbacks": {"mine": {"_target_": "typed_package.Mine"}}}
    with pytest.raises(UserError):
        check_classes(config, Path("config.yaml"))
    trust_classes(config)
    check_classes(config, Path("config.yaml"))


def poisoned(tmp_path):
    return {"_target_": "torch.utils.collect_env.run", "command": f"touch {tmp_path / 'executed'}"}


@pytest.mark.parametrize("name", ["predict", "evaluate", "explain", "search", "index", "train"])
def test_no_command_executes_what_the_config_of_a_run_names(shop_run, tmp_path, command, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    run = Path(shutil.copytree(shop_run.path, tmp_path / "run"))
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["extra"] = poisoned(tmp_path)
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    picture = next(iter((REPOSITORY / "docs").rglob("*.png")))
    arguments = {"train": [f"resume={run}"], "evaluate": [], "search": [f"image={picture}"]}
    main = importlib.import_module(f"fashion_cnn.{name}").main
    named = [] if name == "train" else [f"run={run}"]
    status, out, err = command(main, *named, *arguments.get(name, [f"images={picture}"]))
    assert status in (1, 2)
    assert err.startswith("error: ")
    assert "Traceback" not in out + err
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("key", ["hyper_parameters", "hparams", "module_arguments"])
def test_a_checkpoint_executes_nothing_that_it_names(shop_run, tmp_path, key):
    checkpoint = torch.load(shop_run.weights, weights_only=True)
    network = checkpoint["hyper_parameters"]["network"] | {"activation": poisoned(tmp_path)}
    checkpoint[key] = checkpoint["hyper_parameters"] | {"network": network}
    torch.save(checkpoint, tmp_path / "best.ckpt")
    with pytest.raises(UserError, match=r"best\.ckpt names torch\.utils\.collect_env\.run"):
        ImageClassifier.load_from_checkpoint(tmp_path / "best.ckpt")
    assert not (tmp_path / "executed").exists()


def test_a_catalogue_opens_no_run_elsewhere_unless_the_user_names_it(shop_run, command, tmp_path):
    copy = shutil.copytree(shop_run.catalogue, tmp_path / "catalogue")
    arguments = (f"catalogue={copy}", "text=red", "format=json")
    status, _, err = command(search.main, *arguments, f"runs_dir={tmp_path / 'mine'}")
    assert status == 1
    assert f"names the run {shop_run.path.resolve()}, which is outside runs_dir={tmp_path / 'mine'}: add run=" in err
    assert command(search.main, *arguments, f"runs_dir={shop_run.path.parent}")[0] == 0
    assert command(search.main, *arguments, f"runs_dir={tmp_path / 'mine'}", f"run={shop_run.path}")[0] == 0
    assert command(search.main, f"catalogue={shop_run.catalogue}", "text=red", f"runs_dir={tmp_path / 'mine'}")[0] == 0


def test_the_run_of_a_catalogue_is_checked_where_it_is_opened(shop_run, command, tmp_path, monkeypatch):
    home = tmp_path / "home"
    shutil.copytree(shop_run.path, home / "foreign")
    copy = shutil.copytree(shop_run.catalogue, tmp_path / "shop" / "catalogue")
    monkeypatch.chdir(copy.parent)
    monkeypatch.setenv("HOME", str(home))
    stored = catalogue.metadata_of
    monkeypatch.setattr(catalogue, "metadata_of", lambda table: replace(stored(table), run="~/foreign"))
    # Without the tilde expanded, the run would lie inside of the runs_dir.
    status, _, err = command(search.main, "catalogue=catalogue", "text=red", "runs_dir=.")
    assert status == 1
    assert f"names the run {home / 'foreign'}, which is outside" in err
    assert command(search.main, "catalogue=catalogue", "text=red", f"runs_dir={home}")[0] == 0


def test_settings_of_a_checkpoint_that_hold_each_other_a_billion_times_are_refused(tmp_path):
    levels = ["x"]
    for _ in range(20):
        levels = [levels, levels, levels]
    endless = []
    endless.append(endless)
    for settings in (levels, endless):
        torch.save({"hyper_parameters": {"network": settings}, "state_dict": {}}, tmp_path / "best.ckpt")
        with pytest.raises(UserError, match="its settings are too large"):
            ImageClassifier.load_from_checkpoint(tmp_path / "best.ckpt")


@pytest.mark.parametrize("key", ["hyper_parameters", "hparams", "module_arguments"])
def test_settings_that_hide_their_content_from_the_check_are_refused(tmp_path, key):
    hidden = OrderedDict(network={"_target_": "torch.utils.collect_env.run", "command": "true"})
    hidden.items = OrderedDict  # torch.load restores attributes of an OrderedDict
    torch.save({"state_dict": {}, "hyper_parameters": {}, key: {"network": hidden}}, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match="its settings hold a OrderedDict"):
        ImageClassifier.load_from_checkpoint(tmp_path / "a.ckpt")
    torch.save(OrderedDict(state_dict={}), tmp_path / "b.ckpt")
    with pytest.raises(UserError, match="it holds a OrderedDict"):
        ImageClassifier.load_from_checkpoint(tmp_path / "b.ckpt")


@pytest.mark.parametrize("content", [{"model": {}}, {"state_dict": [1]}])
def test_a_file_without_weights_by_name_is_no_checkpoint(tmp_path, content):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"a\.pth is not a checkpoint of Lightning: it has no state_dict"):
        ImageClassifier.load_from_checkpoint(tmp_path / "a.pth")


def test_a_checkpoint_with_an_instantiator_is_refused(tmp_path):
    settings = {"_instantiator": "subprocess.run", "_class_path": "os.system"}
    torch.save({"state_dict": {}, "hyper_parameters": settings}, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match="written by LightningCLI"):
        ImageClassifier.load_from_checkpoint(tmp_path / "a.ckpt")


@pytest.mark.parametrize("settings", [[["_instantiator", "lightning.pytorch.cli.instantiate_module"]], "text", 1])
@pytest.mark.parametrize("key", ["hyper_parameters", "hparams", "module_arguments"])
def test_settings_of_a_checkpoint_that_are_no_plain_mapping_are_refused(shop_run, tmp_path, key, settings):
    checkpoint = torch.load(shop_run.weights, weights_only=True)
    torch.save({**checkpoint, key: settings}, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match=rf"a\.ckpt is damaged \(its {key} are no mapping\)"):
        ImageClassifier.load_from_checkpoint(tmp_path / "a.ckpt")


@pytest.mark.parametrize("reference", ["${evil}", "${..evil}", ["${evil}"]])
@pytest.mark.parametrize("option", ["std", "augmentation"])
def test_a_reference_to_another_part_of_the_config_is_checked(shop_run, tmp_path, reference, option):
    run = Run(shutil.copytree(shop_run.path, tmp_path / "run"))
    config = yaml.safe_load(run.config_file.read_text())
    config["evil"] = {"_target_": "torch.utils.collect_env.run", "command": f"touch {tmp_path / 'pwned'}"}
    config["data"][option] = {"flip": reference} if option == "augmentation" else reference
    run.config_file.write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match=r"names torch\.utils\.collect_env\.run|cannot be read"):
        instantiate_data(run)
    with pytest.raises(UserError, match=r"names torch\.utils\.collect_env\.run|cannot be read"):
        fashion_cnn.load(run.path)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("name", ["data.__main__", "__main__", "train", "runs.trust", "data.__main__.x"])
def test_the_check_imports_no_module_that_defines_no_accepted_class(name, monkeypatch):
    def refuse(module, *_):
        raise AssertionError(f"imports {module}")

    monkeypatch.setattr(importlib, "import_module", refuse)
    monkeypatch.setattr(importlib.util, "find_spec", refuse)
    with pytest.raises(UserError, match="is not a class that a run may name"):
        check_classes({"_target_": f"fashion_cnn.{name}.ResNet"}, Path("config.yaml"))


@pytest.mark.parametrize(
    "config",
    [
        {"dataset": "torchvision.datasets.LSUNClass"},
        {"data": {"dataset": "subprocess.Popen"}},
        {"a": {"_target_": "torchvision.datasets.KMNIST", "root": "elsewhere", "download": True}},
        {"callbacks": {"a": {"_target_": "lightning.pytorch.callbacks.ModelCheckpoint"}}},
        {"callbacks": {"a": {"_target_": "lightning.pytorch.callbacks.OnExceptionCheckpoint", "dirpath": "a"}}},
        {"callbacks": {"a": {"_target_": "lightning.pytorch.callbacks.SpikeDetection", "window": 1}}},
    ],
)
def test_classes_with_effects_outside_of_the_run_are_refused(config):
    with pytest.raises(UserError, match="which is"):
        check_classes(config, Path("config.yaml"))


def test_data_sets_of_torchvision_that_read_their_own_folder_are_accepted():
    check_classes({"dataset": "torchvision.datasets.CIFAR10"}, Path("config.yaml"))


@pytest.mark.parametrize("value", ["/elsewhere", "../../elsewhere", "a/../../b", "~/b", "${evil}", "a/${data.root}"])
@pytest.mark.parametrize("option", ["name", "save_dir", "sub_dir", "dirpath", "version"])
def test_files_of_loggers_and_callbacks_stay_inside_of_the_run(option, value):
    with pytest.raises(UserError, match="leads out of the run directory"):
        check_classes({"_target_": "lightning.pytorch.loggers.CSVLogger", option: value}, Path("config.yaml"))
    check_classes({"_target_": "lightning.pytorch.loggers.CSVLogger", option: "inside/of"}, Path("config.yaml"))


def test_a_resumed_run_is_checked_with_its_references_resolved(shop_run, tmp_path, command):
    run = Run(shutil.copytree(shop_run.path, tmp_path / "run"))
    run.results_file.unlink()
    config = yaml.safe_load(run.config_file.read_text())
    config["evil"] = {"_target_": "lightning.pytorch.loggers.CSVLogger", "elsewhere": str(tmp_path / "elsewhere")}
    for part in ({"_target_": config["evil"]["_target_"], "name": "${evil.elsewhere}"}, "${logger.missing}"):
        run.config_file.write_text(yaml.safe_dump(config | {"logger": config["logger"] | {"x": part}}))
        status, _, err = command(train.main, f"resume={run.path}")
        assert status == 1
        assert "leads out of the run directory" in err or "logger.missing" in err
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("dataset", ["KMNIST", "FashionMNIST"])
def test_a_run_starts_no_download_into_a_folder_that_only_it_names(shop_run, tmp_path, dataset):
    run = Run(shutil.copytree(shop_run.path, tmp_path / "run"))
    (elsewhere := tmp_path / "elsewhere").mkdir()
    config = yaml.safe_load(run.config_file.read_text())
    data = {"_target_": "fashion_cnn.data.TorchvisionDataModule", "dataset": f"torchvision.datasets.{dataset}"}
    for download in (None, True):
        named = {"root": str(elsewhere), "download": download}
        run.config_file.write_text(yaml.safe_dump(config | {"data": data | named}))
        with pytest.raises(UserError, match="does not hold what was detected in the training images"):
            instantiate_data(run)
        stored = restore_config(compose(), run, by_user=True, check_values=lambda config: None)
        assert stored.data.download is False
        typed = compose("train", [f"data.root='{elsewhere}'"])
        assert restore_config(typed, run, by_user=True, check_values=lambda config: None).data.download is None
        typed = compose("train", ["data.download=true"])
        assert restore_config(typed, run, by_user=True, check_values=lambda config: None).data.download is True
    run.config_file.write_text(
        yaml.safe_dump(config | {"data": {"_target_": "fashion_cnn.data.FashionMNISTDataModule"}})
    )
    assert instantiate_data(run).download is None
    assert not [*elsewhere.iterdir()]


def test_a_run_removes_nothing_from_the_cache_of_pictures(shop_run, tmp_path, monkeypatch):
    (tmp_path / "pictures").mkdir()
    run = Run(shutil.copytree(shop_run.path, tmp_path / "run"))
    config = yaml.safe_load(run.config_file.read_text())
    data = {"_target_": "fashion_cnn.data.ImageFolderDataModule", "root": str(tmp_path / "pictures"), "cache_gb": 0}
    run.config_file.write_text(yaml.safe_dump(config | {"data": data}))
    monkeypatch.setattr("fashion_cnn.data.folder.find_files", lambda root: pytest.fail("a folder was scanned"))
    with pytest.raises(UserError, match="does not hold what was detected in the training images"):
        instantiate_data(run)
    assert restore_config(compose(), run, by_user=True, check_values=lambda config: None).data.cache_gb is None


def test_a_checkpoint_callback_removes_nothing_outside_of_its_folder(tmp_path):
    callback = MovableModelCheckpoint(dirpath=tmp_path / "checkpoints", monitor="val/loss", filename="best")
    state = callback.state_dict()
    for path in ("/elsewhere/..", "/elsewhere/documents", ".."):
        callback.load_state_dict({**state, "best_model_path": path, "best_k_models": {path: torch.tensor(1.0)}})
        assert callback.best_model_path == ""
    callback.load_state_dict({**state, "best_model_path": "/elsewhere/best.ckpt"})
    assert callback.best_model_path == str(tmp_path / "checkpoints" / "best.ckpt")


@pytest.mark.parametrize("value", ["ftp://host/x", "zip://::http://host/x.zip", "reference://::refs.json", "a::b"])
@pytest.mark.parametrize(
    "place",
    [
        lambda options: {"callbacks": {"best": options}},
        lambda options: {"data": {"augmentation": {"evil": [options]}}},
        lambda options: {"network": {"activation": options}},
        lambda options: {"elsewhere": options},
    ],
    ids=["callback", "augmentation", "network of a checkpoint", "elsewhere"],
)
@pytest.mark.parametrize("option", ["dirpath", "name", "_args_"])
def test_no_option_for_a_file_names_an_address(place, option, value):
    with pytest.raises(UserError, match=r"leads out of the run directory|If it is yours, type it"):
        check_classes(place({option: [value] if option == "_args_" else value}), Path("config.yaml"))


@pytest.fixture
def nothing_typed(monkeypatch):
    monkeypatch.setattr("fashion_cnn.runs.trust._typed_options", set())


CALLBACK, LOGGER = "fashion_cnn.training.checkpoints.MovableModelCheckpoint", "lightning.pytorch.loggers.CSVLogger"
TRANSFORM, LAYER = "torchvision.transforms.v2.RandomRotation", "torch.nn.Embedding"
METRIC, OPTIMIZER = "torchmetrics.classification.MulticlassConfusionMatrix", "torch.optim.SGD"


@pytest.mark.parametrize(
    ("place", "path"),
    [
        *(("data.augmentation.evil", path) for path in (CALLBACK, LOGGER, LAYER, METRIC, OPTIMIZER)),
        *(("network.activation", path) for path in (CALLBACK, LOGGER, METRIC, TRANSFORM)),
        *(("model.network.widths.x", path) for path in (CALLBACK, LOGGER, METRIC, TRANSFORM)),
        *(("data.train.x", path) for path in (CALLBACK, LAYER, TRANSFORM)),
        *(("callbacks.x", path) for path in (LOGGER, LAYER, METRIC)),
        *(("logger.x", path) for path in (CALLBACK, LAYER)),
        *((place, CALLBACK) for place in ("optimizer", "schedule", "loss", "mixing", "distillation", "trainer.logger")),
    ],
)
def test_a_class_is_accepted_only_in_the_places_of_its_kind(place, path, nothing_typed):
    config = {"_target_": path}
    for name in reversed(place.split(".")):
        config = {name: config}
    with pytest.raises(UserError, match=rf"config\.yaml names {path} as {place}, where no such class belongs"):
        check_classes(config, Path("config.yaml"))
    trust_classes(config)
    check_classes(config, Path("config.yaml"))


def test_classes_of_a_trusted_package_are_accepted_in_any_place():
    check_classes({"data": {"augmentation": {"x": {"_target_": "tiny_parts.MarginLoss"}}}}, Path("config.yaml"))


@pytest.mark.parametrize("experiment", sorted(file.stem for file in (REPOSITORY / "conf/experiment").glob("*.yaml")))
def test_every_experiment_names_its_classes_in_accepted_places(experiment):
    check_classes(compose("train", [f"experiment={experiment}"]), Path("config.yaml"))


@pytest.mark.parametrize(
    "choice", ["model=ensemble", "optimizer=adamw", "loss=weighted", "metrics=classification", "mixing=mixup"]
)
def test_choices_of_conf_name_their_classes_in_accepted_places(choice):
    check_classes(compose("train", [choice, "data=kmnist", "callbacks=early_stopping"]), Path("config.yaml"))


def test_checkpoints_of_a_resumed_run_go_into_no_folder_that_only_it_names(shop_run, tmp_path, command, nothing_typed):
    run = Run(shutil.copytree(shop_run.path, tmp_path / "run"))
    run.results_file.unlink()
    (victim := tmp_path / "victim").mkdir()
    (victim / "best.ckpt").write_bytes(b"precious")
    config = yaml.safe_load(run.config_file.read_text())
    for folder in ("victim", str(victim)):
        config["callbacks"]["best"]["dirpath"] = folder
        run.config_file.write_text(yaml.safe_dump(config))
        status, _, err = command(train.main, f"resume={run.path}")
        assert status == 1
        assert f"type it, too: ++callbacks.best.dirpath={folder}" in err
    assert (victim / "best.ckpt").read_bytes() == b"precious"


def test_a_folder_for_checkpoints_that_the_user_types_again_is_accepted(nothing_typed):
    config = {"callbacks": {"best": {"_target_": CALLBACK, "dirpath": "/mine"}}}
    trust_classes({"callbacks": {"best": {"dirpath": "/other"}}})
    with pytest.raises(UserError, match=r"type it, too: \+\+callbacks\.best\.dirpath=/mine"):
        check_classes(config, Path("config.yaml"))
    trust_classes({"callbacks": {"best": {"dirpath": "/mine"}}})
    check_classes(config, Path("config.yaml"))


def test_a_server_of_a_logger_is_used_only_if_the_user_types_it(nothing_typed):
    options = {"_target_": "lightning.pytorch.loggers.MLFlowLogger", "tracking_uri": "file:/elsewhere"}
    config = {"logger": {"ml": options}}
    for typed in ({}, {"_target_": options["_target_"]}, options | {"tracking_uri": "http://mine"}):
        trust_classes({"logger": {"ml": typed}})
        with pytest.raises(UserError, match=r"type it, too: .*\+\+logger\.ml\.tracking_uri=file:/elsewhere"):
            check_classes(config, Path("config.yaml"))
    trust_classes(config)
    check_classes(config, Path("config.yaml"))


@pytest.mark.parametrize(
    "override",
    [
        "callbacks.best.dirpath=runs/victim/checkpoints",
        "callbacks.best.dirpath=ftp://host/x",
        "callbacks.best={dirpath:runs/victim}",
        "+remedy.set={callbacks.best.dirpath:runs/victim}",
        "+remedy.set={callbacks.best:{dirpath:runs/victim}}",
        "trainer.default_root_dir=elsewhere",
        "+logger.csv2={_target_:lightning.pytorch.loggers.CSVLogger,sub_dir:'~/x'}",
        "+logger.ml._target_=lightning.pytorch.loggers.MLFlowLogger",
        f"+data.augmentation.x={{_target_:{CALLBACK}}}",
        f"+data.augmentation.x._target_={CALLBACK}",
        f"model.network.activation={{_target_:{CALLBACK}}},relu",
    ],
)
def test_a_stored_sweep_names_no_folder_address_or_class_of_another_place(tmp_path, override, nothing_typed):
    with pytest.raises(UserError, match=r"multirun\.yaml"):
        stored_sweep(tmp_path, task=[override])


def with_pickle(file, operations):
    """Put operations that leave one object, which is dropped, in front of the pickle of a checkpoint."""
    copy = io.BytesIO()
    with zipfile.ZipFile(file) as archive, zipfile.ZipFile(copy, "w") as written:
        for entry in archive.infolist():
            content = archive.read(entry)
            if entry.filename.endswith("/data.pkl"):
                content = content[:2] + operations + b"0" + content[2:]
            written.writestr(entry.filename, content)
    file.write_bytes(copy.getvalue())


# All multiples of 2^61 - 1 have the hash 0.
_EQUAL_HASHES = b"".join(b"\x8a\x0b" + (number * (2**61 - 1)).to_bytes(11, "little") + b"N" for number in range(9))


@pytest.mark.parametrize(
    ("operations", "reason"),
    [
        (b"c__builtin__\nbytearray\n\x8a\x05" + (25 * 10**8).to_bytes(5, "little") + b"\x85R", "calls __builtin__ byt"),
        (b"ctorch\nFloatTensor\nJ\xff\xff\xff\x7f\x85R", "calls torch FloatTensor"),
        (b"ctorch.storage\nUntypedStorage\nJ\xff\xff\xff\x7f\x85R", "calls torch.storage UntypedStorage"),
        (b"}(" + _EQUAL_HASHES + b"u", "keys that are neither texts nor small numbers"),
        (b"ccollections\nOrderedDict\n]\x85R", "a dict of a list"),
        (b"}(K\x01K\x02\x86Nu", "keys that are neither texts nor small numbers"),
        (b"\x8a\xff" + b"\x7f" * 255, "a huge number"),
        (b"N0" * 600_000 + b"N", "more than 1,000,000 operations"),
        (b"X" + (11 * 10**6).to_bytes(4, "little") + b"x" * 11 * 10**6, "settings are larger than 10 MB"),
        (b"0", "its pickle is damaged"),
    ],
    ids=[
        "bytearray",
        "tensor",
        "storage",
        "equal hashes",
        "ordered",
        "tuples",
        "number",
        "operations",
        "size",
        "stack",
    ],
)
def test_a_pickle_that_would_take_memory_or_time_is_not_loaded(shop_run, tmp_path, monkeypatch, operations, reason):
    file = Path(shutil.copy(shop_run.weights, tmp_path / "a.ckpt"))
    read_checkpoint(file)
    with_pickle(file, operations)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was loaded"))
    with pytest.raises(UserError, match=f"a.ckpt is not a readable checkpoint .*{reason}"):
        read_checkpoint(file)
    with pytest.raises(UserError, match=f"a.ckpt is damaged .*{reason}"):
        ImageClassifier.load_from_checkpoint(file)


def test_no_message_advises_to_execute_the_code_in_a_file(shop_run, tmp_path):
    """Such is the text of torch for what its safe unpickler refuses."""
    file = Path(shutil.copy(shop_run.weights, tmp_path / "a.ckpt"))
    with_pickle(file, b"I1\n")
    reason = r"\(its pickle holds other things than tensors and plain values\)"
    with pytest.raises(UserError, match=f"a.ckpt is not a readable checkpoint {reason}: take it from a copy"):
        read_checkpoint(file)
    with pytest.raises(UserError, match=f"a.ckpt is damaged {reason}: take it from a copy"):
        ImageClassifier.load_from_checkpoint(file)


def test_a_compressed_checkpoint_is_not_loaded(tmp_path):
    torch.save({"state_dict": {"a": torch.zeros(100_000)}, "epoch": 0, "global_step": 0}, file := tmp_path / "a.ckpt")
    read_checkpoint(file)
    with zipfile.ZipFile(file) as archive, zipfile.ZipFile(tmp_path / "b.ckpt", "w", zipfile.ZIP_DEFLATED) as copy:
        for entry in archive.infolist():
            copy.writestr(entry.filename, archive.read(entry))
    with pytest.raises(UserError, match=r"b\.ckpt is not a readable checkpoint .* bytes unpack to "):
        read_checkpoint(tmp_path / "b.ckpt")


def test_a_checkpoint_with_the_state_of_a_long_training_is_read(tmp_path):
    network = torch.nn.Sequential(*[torch.nn.Linear(2, 2) for _ in range(300)])
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.zeros(1, 2)).sum().backward()
    optimizer.step()
    state = {
        "state_dict": network.state_dict(),
        "epoch": 1000,
        "global_step": 2**40,
        "optimizer_states": [optimizer.state_dict()],
        "callbacks": {"GapMonitor": {"passes": [torch.zeros(3) for _ in range(1000)]}, "times": [-1.5, None, True]},
        "hyper_parameters": {"shape": (1, 28, 28), "dtype": torch.bfloat16, "device": torch.device("cpu")},
        "parameter": torch.nn.Parameter(torch.zeros(2)),
    }
    torch.save(state, tmp_path / "a.ckpt")
    assert read_checkpoint(tmp_path / "a.ckpt").keys() == state.keys()


@pytest.mark.parametrize(
    "change",
    [
        lambda weight: weight.to("meta"),
        lambda weight: weight.to_sparse(),
        lambda weight: torch.zeros(3, 3).to_sparse_csr(),
        lambda weight: weight.to(torch.complex64).conj(),
        lambda weight: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
        lambda weight: torch.zeros(1).as_strided((2**20, 2**20), (0, 0)),
    ],
    ids=["meta", "sparse", "csr", "conjugate", "nested", "strided"],
)
@pytest.mark.filterwarnings("ignore")
def test_weights_that_are_not_stored_in_full_are_refused(shop_run, tmp_path, change):
    checkpoint = torch.load(shop_run.weights, weights_only=True)
    name = next(name for name, weight in checkpoint["state_dict"].items() if weight.ndim == 4)
    checkpoint["state_dict"][name] = change(checkpoint["state_dict"][name])
    torch.save(checkpoint, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match=r"a\.ckpt is not a readable checkpoint \((its pickle calls|network\.)"):
        read_checkpoint(tmp_path / "a.ckpt")


def test_names_of_weights_are_texts_and_weights_do_not_repeat_the_same_memory(shop_run, tmp_path):
    checkpoint = torch.load(shop_run.weights, weights_only=True)
    torch.save({**checkpoint, "state_dict": {**checkpoint["state_dict"], 5: torch.zeros(1)}}, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match=r"a\.ckpt is not a readable checkpoint \(the name of a weight is 5, no text"):
        read_checkpoint(tmp_path / "a.ckpt")
    shared = torch.zeros(1000)
    torch.save({**checkpoint, "state_dict": {str(name): shared for name in range(100)}}, tmp_path / "b.ckpt")
    with pytest.raises(UserError, match="its weights are the same memory many times"):
        read_checkpoint(tmp_path / "b.ckpt")


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"network": {"widths": [60_000, 60_000]}}, "far larger than its weights"),
        ({"network": {"depths": [10**9, 1]}}, "far larger than its weights"),
        ({"image_shape": (1, 12_000, 12_000)}, "far larger than its weights"),
        ({"num_classes": 10**9}, "far larger than its weights"),
        ({"network": {"widths": [16, 16]}}, "does not fit"),
        ({"loss": {"_target_": "torch.nn.Embedding", "num_embeddings": 10**6, "embedding_dim": 10**3}}, "far larger"),
        (
            {
                "metrics": {
                    "a": {"_target_": "torchmetrics.classification.MulticlassConfusionMatrix", "num_classes": 10**5}
                }
            },
            "far larger than its weights",
        ),
    ],
    ids=["widths", "depths", "image", "classes", "small", "loss", "metric"],
)
def test_no_network_is_built_that_is_larger_than_its_weights(shop_run, tmp_path, monkeypatch, changed, reason):
    run = Run(shutil.copytree(shop_run.path, tmp_path / "run"))
    checkpoint = torch.load(run.weights, weights_only=True)
    settings = checkpoint["hyper_parameters"]
    for name, value in changed.items():
        settings[name] = {**settings[name], **value} if name == "network" else value
    torch.save(checkpoint, run.weights)
    with pytest.raises(UserError, match=rf"{run.weights.name}.* {reason}"):
        fashion_cnn.load(run.path)


def test_images_and_classes_of_the_data_are_those_of_the_network(shop_run, tmp_path, monkeypatch):
    for name, value in (("image_shape", (1, 12_000, 12_000)), ("class_names", ("a", "b"))):
        monkeypatch.setattr(tiny_images.TinyDataModule, name, value)
        with pytest.raises(UserError, match=r"config\.yaml does not belong to .*ckpt: .* images of"):
            fashion_cnn.load(shop_run.path)
        monkeypatch.undo()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("data.root", value) for value in ({"a": 1}, -3, ["a"])),
        *(("trainer", value) for value in (None, 0, ["a"])),
        *(("model._target_", value) for value in (None, "torch.nn.ReLU")),
        *(("data.mean", value) for value in ({"a": 1}, "x", None)),
        *(("data.augmentation", value) for value in (["a"], 3)),
        *((name, None) for name in ("data", "model", "data._target_")),
        ("data.eval_batch_size", "many"),
    ],
)
def test_settings_of_other_types_are_reported_in_one_message(shop_run, tmp_path, key, value):
    run = Run(shutil.copytree(shop_run.path, tmp_path / "run"))
    config = OmegaConf.load(run.config_file)
    OmegaConf.update(config, key, value, merge=False)
    run.config_file.write_text(OmegaConf.to_yaml(config))
    with pytest.raises(UserError, match=rf"config\.yaml|{key}"):
        fashion_cnn.load(run.path)
