"""Export to a folder for model hubs: safetensors, settings, model card, and the network as plain PyTorch code."""

import json
import re
import runpy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from omegaconf import OmegaConf
from safetensors.torch import save
from torch import Tensor, fx, nn

from fashion_cnn.data import ImageDataModule
from fashion_cnn.errors import UserError, disk_errors_at
from fashion_cnn.inference.network import NetworkRunner, instantiate_data, load
from fashion_cnn.inference.predictor import load_calibration
from fashion_cnn.models import ImageClassifier
from fashion_cnn.runs import Run, create_folder, display_path, temporary_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch.export import ExportedProgram

WEIGHTS_FILE, CONFIG_FILE, CODE_FILE, CARD_FILE = "model.safetensors", "config.json", "model.py", "README.md"
_TOLERANCE = 1e-3
_CHECK_IMAGES = 64
# Operations of torch.export that check types and compute nothing.
_ASSERTIONS = ("_assert", "promote_types", "sym_constrain_range")
_CODE = '''"""{name} as plain PyTorch: needs torch and safetensors, and nothing of fashion_cnn.

The operations are those that torch.export recorded; the weights have the names of the network in fashion_cnn.
Written by fashion_cnn {version} with torch {torch}.

    model = load()
    probabilities = model.predict_proba(images)  # (B, {channels}, {height}, {width}) uint8
"""

import json
import operator  # noqa: F401  some networks compute sizes with it
from pathlib import Path

import torch
from safetensors.torch import load_file

ops = torch.ops.aten


class Model(torch.nn.Module):
    """Maps images (B, {channels}, {height}, {width}) uint8 to {outputs}."""

    def __init__(self, config, weights):
        super().__init__()
        self.class_names = config["class_names"]
        self.temperature = config["temperature"]
        preprocessing = config["preprocessing"]
        self.register_buffer("pixel_mean", torch.tensor(preprocessing["pixel_mean"]).view(-1, 1, 1))
        self.register_buffer("pixel_scale", torch.tensor(preprocessing["pixel_scale"]).view(-1, 1, 1))
        for name, weight in weights.items():
            self.register_buffer(name.replace(".", "__"), weight)

    def forward(self, images):
        normalised = (images.float() - self.pixel_mean) * self.pixel_scale
{body}

    def predict_proba(self, images):
        """Return calibrated probabilities (B, {classes})."""
        logits = self(images){first}
        return (logits / self.temperature).softmax(dim=1)


def load(folder=Path(__file__).parent):
    """Read the network from the folder of this file."""
    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    return Model(config, load_file(Path(folder) / "model.safetensors")).eval()
'''
_USAGE = """## Use

`model.py` is the network as plain PyTorch code. It takes images `{shape}` uint8, and normalises them itself:

```python
import torch
from model import load  # this folder's model.py; needs torch and safetensors alone

model = load()
images = torch.zeros(1, {shape_numbers}, dtype=torch.uint8)
(probabilities,) = model.predict_proba(images).tolist()
print(dict(zip(model.class_names, probabilities)))
```

`config.json` has the class names, the normalisation and the architecture, `model.safetensors` the weights alone.
Neither executes code when it is read.
"""


class _Outputs(nn.Module):
    """Logits, and embeddings if the network has them, of normalised images."""

    def __init__(self, module: ImageClassifier) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        if self.module.head_name is None:
            return (self.module(images),)
        return self.module.logits_and_embeddings(images)


def export_to_hub(run: Run, folder: Path, *, version: str, license_name: str | None) -> dict[str, Any]:
    """Write the network of a finished run as a folder that model hubs take; no image of the data set is needed.

    Args:
        run: the run.
        folder: the directory to write to.
        version: of fashion_cnn.
        license_name: identifier of the licence of the weights, such as `mit`; None states none.

    Returns:
        The directory as `written_to`, and the size of each file in bytes as `files`.

    Raises:
        UserError: if the network cannot be written as code, the written network gives other outputs, or the directory
            cannot be written.
    """
    data = instantiate_data(run)
    network = NetworkRunner(load(run), data)
    temperature = load_calibration(run, reject=0.0)[0].temperature
    code, weights = write_code(network.module, data, version=version)
    config = _config(run, network.module, data, temperature, version)
    contents = {
        WEIGHTS_FILE: save(weights, metadata={"format": "pt"}),
        CONFIG_FILE: f"{json.dumps(config, indent=2, ensure_ascii=False)}\n".encode(),
        CODE_FILE: code.encode(),
        CARD_FILE: _model_card(run, data, license_name).encode(),
    }
    create_folder(folder, "out")
    # Files get their names only after the check.
    with disk_errors_at(folder), temporary_folder(folder, ".unchecked-") as unchecked:
        for name, content in contents.items():
            (unchecked / name).write_bytes(content)
        _check_parity(network, unchecked)
        for name in contents:
            (unchecked / name).replace(folder / name)
        sizes = {name: (folder / name).stat().st_size for name in contents}
    return {"run": str(display_path(run.path)), "written_to": str(display_path(folder)), "files": sizes}


def write_code(module: ImageClassifier, data: ImageDataModule, *, version: str) -> tuple[str, dict[str, Tensor]]:
    """Write a network as a Python module that needs torch and safetensors alone.

    Args:
        module: the network, in eval mode on the CPU.
        data: its data module, for the shape of the images.
        version: of fashion_cnn.

    Returns:
        The source, and the weights and buffers that it reads, by the names that they have in the network.

    Raises:
        UserError: if torch.export cannot record the network, or it needs operations that are not torch's own.
    """
    name = type(module.network).__name__
    example = torch.zeros(2, *data.image_shape)
    try:
        program = torch.export.export(
            _Outputs(module).eval(), (example,), dynamic_shapes={"images": {0: torch.export.Dim("batch")}}
        )
    except Exception as error:  # torch.export raises what it met in the network's code
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"torch.export cannot record {name} for batches of any size ({reason:.200}): no file is written."
        ) from error
    statements, weights = _translate(program, name)
    has_embeddings = module.head_name is not None
    channels, height, width = data.image_shape
    described = f"logits (B, {data.num_classes})"
    source = _CODE.format(
        name=name,
        version=version,
        torch=torch.__version__,
        channels=channels,
        height=height,
        width=width,
        classes=data.num_classes,
        outputs=f"{described} and embeddings (B, {module.embedding_size})" if has_embeddings else described,
        first="[0]" if has_embeddings else "",
        body="\n".join(f"        {statement}" for statement in statements),
    )
    return source, weights


def _translate(program: "ExportedProgram", network: str) -> tuple[list[str], dict[str, Tensor]]:
    """Translate the graph of a program to Python.

    Args:
        program: the program that torch.export recorded.
        network: name of its network, for an error message.

    Returns:
        The statements, and the weights and buffers that they read, by the names that they have in the network.

    Raises:
        UserError: if it needs operations that are not torch's own.
    """
    targets = {
        spec.arg.name: str(spec.target) for spec in program.graph_signature.input_specs if spec.target is not None
    }
    tensors = {**program.state_dict, **program.constants}
    weights: dict[str, Tensor] = {}
    expressions: dict[fx.Node, str] = {}
    statements: list[str] = []
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in targets:
            target = targets[node.name]
            weight = target.removeprefix("module.network.")
            # Tied weights are stored once for each name: safetensors takes no shared memory.
            weights[weight] = tensors[target].detach().clone().contiguous()
            expressions[node] = f"self.{weight.replace('.', '__')}"
        elif node.op == "placeholder":
            expressions[node] = "normalised"
        elif node.op == "output":
            outputs = [_expression(value, expressions) for value in node.args[0]]
            statements.append(f"return {', '.join(outputs)}")
        elif not any(word in str(node.target) for word in _ASSERTIONS):
            expressions[node] = node.name
            statements.append(f"{node.name} = {_call(node, expressions, network)}")
    return statements, weights


def _call(node: fx.Node, expressions: dict[fx.Node, str], network: str) -> str:
    """Return the Python code of the call that a node of the graph stands for."""
    arguments = [_expression(value, expressions) for value in node.args]
    if node.target is getattr and len(arguments) == 2:
        return f"getattr({', '.join(arguments)})"
    arguments += [f"{key}={_expression(value, expressions)}" for key, value in node.kwargs.items()]
    if isinstance(node.target, torch._ops.OpOverload) and node.target.namespace == "aten":
        return f"{str(node.target).replace('aten.', 'ops.', 1)}({', '.join(arguments)})"
    function: Callable[..., Any] | str = node.target
    module, name = getattr(function, "__module__", ""), getattr(function, "__name__", str(function))
    if module in ("_operator", "operator") or (module == "torch" and name.startswith("sym_")):
        return f"{'torch' if module == 'torch' else 'operator'}.{name}({', '.join(arguments)})"
    raise UserError(
        f"{network} needs the operation {name}, which is not one of torch's own: no file is written. "
        "Use format=onnx, or torch.export."
    )


def _expression(value: Any, expressions: dict[fx.Node, str]) -> str:
    """Return the Python code of an argument of a node."""
    if isinstance(value, fx.Node):
        return expressions[value]
    if isinstance(value, list | tuple):
        return f"[{', '.join(_expression(element, expressions) for element in value)}]"
    if isinstance(value, torch.device):
        return "images.device"
    if isinstance(value, float):
        return repr(value) if abs(value) < float("inf") else f'float("{value}")'
    return repr(value)


def _config(
    run: Run, module: ImageClassifier, data: ImageDataModule, temperature: float, version: str
) -> dict[str, Any]:
    """Return the content of `config.json`: classes, normalisation, preparation and architecture."""
    preparation = data.preparation("auto")
    names = list(data.class_names)
    return {
        "architecture": OmegaConf.to_container(run.config().model.network, resolve=True),
        "num_classes": len(names),
        "class_names": names,
        "id2label": {str(label): name for label, name in enumerate(names)},
        "label2id": {name: label for label, name in enumerate(names)},
        "embedding_size": module.embedding_size,
        "temperature": temperature,
        "preprocessing": {
            "image_shape": list(data.image_shape),
            # For pixel values from 0 to 255: normalised = (pixels - pixel_mean) * pixel_scale.
            "pixel_mean": data.pixel_mean.flatten().tolist(),
            "pixel_scale": data.pixel_scale.flatten().tolist(),
            "item_cut_out_light_on_black": preparation.cut_out,
            "background": preparation.background,
        },
        "weights_sha256": run.results().get("weights_sha256"),
        "made_with": {"fashion_cnn": version, "torch": str(torch.__version__)},
    }


def _model_card(run: Run, data: ImageDataModule, license_name: str | None) -> str:
    """Return the run's model card with the metadata that hubs read, and how to use the folder."""
    results = run.results()
    try:
        title, _, card = run.model_card_file.read_text(encoding="utf-8").partition("\n")
    except FileNotFoundError:
        raise UserError(f"{run.model_card_file} is missing: copy the run whole.") from None
    # This paragraph describes the files of the ONNX export.
    parts = [part for part in card.strip().split("\n\n") if not part.startswith("**Exported.**")]
    shape = ", ".join(map(str, data.image_shape))
    usage = _USAGE.format(shape=f"(B, {shape})", shape_numbers=shape)
    metadata = yaml.safe_dump(_metadata(run, data, results, license_name), sort_keys=False, allow_unicode=True)
    return (
        f"---\n{metadata}---\n\n{title}\n\n" + "\n\n".join([parts[0], usage.strip(), "## Details", *parts[1:]]) + "\n"
    )


def _metadata(run: Run, data: ImageDataModule, results: dict[str, Any], license_name: str | None) -> dict[str, Any]:
    """Return the metadata of the model card, in the form of Hugging Face's hub."""
    name = str(run.config().model.network._target_).rpartition(".")[2]
    # The name of the data set without references and details.
    dataset = {"name": re.split(r" \(|[.,]", data.about)[0] or type(data).__name__}
    dataset["type"] = data.hub_dataset or dataset["name"]
    evaluated = [split for split in ("test", "val") if f"{split}/accuracy" in results][:1]
    metadata: dict[str, Any] = {
        **({"license": str(license_name)} if license_name else {}),
        "library_name": "pytorch",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "fashion_cnn", "safetensors"],
        **({"datasets": [data.hub_dataset]} if data.hub_dataset else {}),
        "metrics": ["accuracy"],
    }
    if evaluated:
        split = evaluated[0]
        metric = {"type": "accuracy", "name": f"{split} accuracy", "value": round(results[f"{split}/accuracy"], 6)}
        result = {
            "task": {"type": "image-classification", "name": "Image Classification"},
            "dataset": {**dataset, "split": "test" if split == "test" else "validation"},
            "metrics": [metric],
        }
        metadata["model-index"] = [{"name": f"{name} ({run.path.parent.name})", "results": [result]}]
    return metadata


def _check_parity(network: NetworkRunner, folder: Path) -> None:
    """Raise UserError unless the written network gives the outputs of the trained one on random images."""
    shape = (_CHECK_IMAGES, *network.data.image_shape)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    module = network.module
    expected = [network.logits(images)] + ([network.features(images)] if module.head_name is not None else [])
    written = runpy.run_path(str(folder / CODE_FILE))["load"](folder)
    for batch in (images, images[:1]):
        with torch.inference_mode():
            outputs: Sequence[Tensor] | Tensor = written(batch)
        outputs = [outputs] if isinstance(outputs, Tensor) else outputs
        for output, reference in zip(outputs, expected, strict=True):
            if not torch.allclose(output, reference[: len(batch)], rtol=_TOLERANCE, atol=_TOLERANCE):
                raise UserError(
                    f"The written network differs from {type(module.network).__name__} on random images: no file is "
                    "written. Please report the model and the version of torch."
                )
