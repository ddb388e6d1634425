"""Networks and the LightningModule around them."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from conftest import PATIENCE
from hydra.utils import instantiate
from torch import nn

from fashion_cnn.cli.main import CONFIG_DIR, compose
from fashion_cnn.data import Batch
from fashion_cnn.errors import UserError
from fashion_cnn.models import Ensemble, FastCNN, ImageClassifier, KerasCNN, ResNet, WideResNet
from fashion_cnn.models.backbones import TorchvisionBackbone
from fashion_cnn.models.fast_cnn import Whitening
from fashion_cnn.models.hardware import precision_context
from fashion_cnn.models.resnet import ResidualBlock

MAX_PARAMETERS = {
    "baseline": 241_546,
    "tiny": 100_000,
    "small": 300_000,
    "fast": 300_000,
    "medium": 800_000,
    "ensemble": 700_000,
    "large": 37_000_000,
    # resnet18 of torchvision.
    "torchvision": 11_200_000,
    # EfficientNet-Lite0.
    "timm": 3_400_000,
}
NETWORKS = {
    "keras": lambda **data: KerasCNN(**data),
    "resnet": lambda **data: ResNet(stem=[8], widths=[8, 16], depths=[1, 2], dropout=0.1, **data),
    "group_norm_resnet": lambda **data: ResNet(
        stem=[8], widths=[8, 16], depths=[1, 0], activation="silu", normalisation="group", **data
    ),
    "plain_network": lambda **data: ResNet(
        stem=[8], widths=[8], depths=[1], activation="gelu", normalisation="none", residual=False, **data
    ),
    "fast_cnn": lambda **data: FastCNN(whitened=8, widths=[8, 16], **data),
    "ensemble": lambda **data: Ensemble(members=3, member=NETWORKS["fast_cnn"], **data),
    "wide_resnet": lambda **data: WideResNet(depth=10, widen_factor=1, dropout=0.1, **data),
}


def configured(name):
    network = compose(overrides=[f"model={name}"]).model.network
    return instantiate(network, in_channels=1, num_classes=10, _convert_="all")


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


def test_the_size_table_covers_every_model_config():
    assert {file.stem for file in (CONFIG_DIR / "model").glob("*.yaml")} == set(MAX_PARAMETERS)


@pytest.mark.parametrize("name", MAX_PARAMETERS)
@pytest.mark.slow
def test_each_model_config_stays_below_its_size_and_all_parameters_get_gradients(name):
    network = configured(name)
    logits = network(torch.rand(4, 1, 28, 28))
    assert logits.shape == (4, 10)
    assert count(network) <= MAX_PARAMETERS[name]
    logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_the_baseline_has_as_many_parameters_as_the_keras_notebook():
    network = configured("baseline")
    network(torch.zeros(1, 1, 28, 28))
    assert count(network) == 241_546


@pytest.mark.parametrize("side", [20, 27, 28, 30])
def test_the_baselines_crop_does_not_change_its_logits(side):
    network = KerasCNN(in_channels=1, num_classes=10).eval()
    images = torch.rand(2, 1, side, side)
    torch.testing.assert_close(network(images), network.classifier(network.trunk(images)))


def test_the_baseline_is_initialised_as_in_keras():
    network = configured("baseline")
    network(torch.zeros(1, 1, 28, 28))
    dense = network.trunk[12]
    assert dense.weight.shape == (128, 1152)
    for layer, fan_in, fan_out in (
        (network.trunk[4], 32 * 9, 64 * 9),
        (dense, 1152, 128),
        (network.classifier, 128, 10),
    ):
        bound = (6 / (fan_in + fan_out)) ** 0.5
        assert 0.95 * bound < layer.weight.abs().max() <= bound, "Glorot's uniform distribution"
        assert not layer.bias.any()


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize(("channels", "side", "classes"), [(1, 28, 10), (3, 64, 7)])
def test_networks_adapt_to_channels_size_and_classes(network, channels, side, classes):
    built = network(in_channels=channels, num_classes=classes).eval()
    images = torch.rand(5, channels, side, side)
    logits = built(images)
    assert logits.shape == (5, classes)
    module = ImageClassifier(network=built, image_shape=(channels, side, side), num_classes=classes).eval()
    embeddings = module.embed(images)
    assert embeddings.shape == (5, module.embedding_size)
    assert torch.allclose(built.classifier(embeddings), logits, atol=1e-5)
    one_by_one = torch.cat([built(image[None]) for image in images])
    assert torch.allclose(one_by_one, logits, atol=1e-4), "logits must not depend on the batch"


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_saved_weights_give_the_same_logits(network, tmp_path):
    first, second = (network(in_channels=1, num_classes=10).eval() for _ in range(2))
    images = torch.rand(2, 1, 28, 28)
    expected = first(images)
    second(images)
    assert not torch.equal(second(images), expected)
    torch.save(first.state_dict(), tmp_path / "weights.pt")
    second.load_state_dict(torch.load(tmp_path / "weights.pt"))
    assert torch.equal(second(images), expected)


def test_pooling_before_relu_equals_pooling_after_it():
    torch.manual_seed(0)
    network = NETWORKS["resnet"](in_channels=1, num_classes=10).eval()
    layers = list(network.trunk)
    pooling = next(place for place, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d))
    assert isinstance(layers[pooling + 1], nn.ReLU)
    behind = nn.Sequential(*layers[:pooling], layers[pooling + 1], layers[pooling], *layers[pooling + 2 :])
    images = torch.randn(4, 1, 28, 28)
    assert torch.equal(network.trunk(images.clone()), behind(images.clone()))


@pytest.mark.parametrize("side", [28, 27, 8])
def test_a_strided_stem_halves_the_resolution_as_a_pooling_does(side):
    data = {"in_channels": 3, "num_classes": 10, "stem": [8, 16], "widths": [16, 24], "depths": [1, 0]}
    sides = {}
    for strided in (False, True):
        network = ResNet(**data, pool_first=True, strided_stem=strided)
        seen = sides.setdefault(strided, [])
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d):
                layer.register_forward_hook(lambda _, __, output, seen=seen: seen.append(output.shape[-1]))
        assert network(torch.randn(2, 3, side, side)).shape == (2, 10)
    half, quarter = side // 2, side // 4
    assert sides[False] == [side, side, half, half, half, quarter]
    assert sides[True] == [half, half, half, half, half, quarter]


@pytest.mark.parametrize("normalised", [True, False])
def test_a_block_starts_as_the_identity_with_its_output_normalised_or_not(normalised):
    network = ResNet(in_channels=1, num_classes=10, stem=[8], widths=[16], depths=[1], norm_block_output=normalised)
    block = next(layer for layer in network.trunk if isinstance(layer, ResidualBlock))
    norms = sum(isinstance(layer, nn.BatchNorm2d) for layer in block.modules())
    images = torch.randn(2, 16, 6, 6).abs()
    assert norms == 1 + normalised
    assert torch.equal(block(images), images)
    block.train()(images).square().sum().backward()
    assert any(parameter.grad.abs().sum() > 0 for parameter in block.branch[2].parameters())


def test_a_strided_stem_without_a_convolution_is_refused():
    with pytest.raises(UserError, match="strided_stem=true needs a convolution"):
        ResNet(in_channels=1, num_classes=10, stem=[], widths=[8], depths=[0], strided_stem=True)


@pytest.mark.parametrize("name", ["fast_cnn", "resnet"])
def test_pooling_first_normalises_a_quarter_of_the_pixels_and_computes_the_same_in_evaluation(name):
    data = {"in_channels": 1, "num_classes": 10}
    former, first = NETWORKS[name](**data), NETWORKS[name](**data, pool_first=True)
    first.load_state_dict(dict(zip(first.state_dict(), former.state_dict().values(), strict=True)))
    images = torch.randn(4, 1, 28, 28)
    # The running statistics differ from here on, so that evaluation is not the identity.
    former.train()(images)
    first.load_state_dict(dict(zip(first.state_dict(), former.state_dict().values(), strict=True)))
    torch.testing.assert_close(first.eval()(images), former.eval()(images))

    def normalised_pixels(network):
        pixels = 0

        def count(module, arguments):
            nonlocal pixels
            pixels += arguments[0][0, 0].numel()

        hooks = [m.register_forward_pre_hook(count) for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
        network(images)
        for hook in hooks:
            hook.remove()
        return pixels

    assert normalised_pixels(first) < normalised_pixels(former)


@pytest.mark.parametrize("whitened", [0, 7, 20])
def test_an_impossible_number_of_whitened_channels_is_refused(whitened):
    with pytest.raises(UserError, match=f"whitened={whitened}"):
        FastCNN(in_channels=1, num_classes=10, whitened=whitened, widths=[8])


def test_whitening_makes_patches_uncorrelated_and_of_unit_variance():
    torch.manual_seed(0)
    images = nn.functional.avg_pool2d(torch.randn(50, 2, 22, 22), 3, 1)
    whitening = Whitening(in_channels=2, channels=36)

    def covariance():
        outputs = whitening(images)[:, :18].transpose(0, 1).flatten(1)
        return outputs @ outputs.T / outputs.shape[1]

    assert (covariance() - torch.eye(18)).abs().max() > 0.5
    whitening.fit(images, smallest_variance=0.0)
    assert torch.allclose(covariance(), torch.eye(18), atol=0.01)
    outputs = whitening(images)
    assert torch.allclose(outputs[:, 18:], -outputs[:, :18])
    whitening.fit(images * 2)
    assert torch.equal(whitening(images), outputs), "the second fit must do nothing"


@pytest.mark.parametrize("size", [(28, 28), (9, 7)])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "64-true"])
def test_whitened_images_are_pooled_as_by_torch_layers(size, precision):
    torch.manual_seed(0)
    images = torch.rand(3, 2, *size, dtype=torch.float64 if precision == "64-true" else torch.float32)
    whitening = Whitening(in_channels=2, channels=16).to(images.dtype)
    with precision_context(precision, "cpu"):
        expected = nn.functional.max_pool2d(whitening(images), 2)
        pooled = whitening.whiten_and_pool(images)
        differentiable = whitening.whiten_and_pool(images.clone().requires_grad_())
    assert pooled.dtype == expected.dtype
    assert torch.allclose(pooled, expected, atol=1e-6)
    assert torch.equal(differentiable, expected)
    assert differentiable.requires_grad, "explanations need the gradient of the image"


def test_each_ensemble_member_is_trained_on_its_part_of_the_batch():
    torch.manual_seed(0)
    ensemble = NETWORKS["ensemble"](in_channels=1, num_classes=10)
    logits = ensemble(torch.rand(6, 1, 28, 28))
    assert logits.shape == (6, 10)
    logits[2:4].sum().backward()
    has_gradient = [any(p.grad is not None and bool(p.grad.any()) for p in m.parameters()) for m in ensemble.members]
    assert has_gradient == [False, True, False]
    used = ensemble.classifier.weight.grad.view(10, 3, ensemble.width).abs().sum(dim=(0, 2))
    assert (used > 0).tolist() == [False, True, False]


def test_an_ensemble_averages_the_logits_of_its_members():
    torch.manual_seed(0)
    ensemble = NETWORKS["ensemble"](in_channels=1, num_classes=10)
    images = torch.rand(5, 1, 28, 28)
    for network in ensemble.members:
        network.eval()
    # In training each member gets a part of the batch, here the same images.
    member_logits = ensemble(images.repeat(3, 1, 1, 1)).view(3, 5, 10)
    assert not torch.allclose(member_logits[0], member_logits[1])
    torch.testing.assert_close(ensemble.eval()(images), member_logits.mean(dim=0))


def test_initialise_reaches_all_ensemble_members():
    ensemble = NETWORKS["ensemble"](in_channels=1, num_classes=10)
    ensemble.initialise(torch.rand(20, 1, 28, 28))
    assert all(network.whitening.fitted for network in ensemble.members)


@pytest.mark.parametrize("normalisation", ["batch", "group", "none"])
def test_a_residual_block_starts_as_the_identity(normalisation):
    torch.manual_seed(0)
    with_block, without = (
        ResNet(in_channels=1, num_classes=4, stem=[8], widths=[8], depths=[depth], normalisation=normalisation).eval()
        for depth in (1, 0)
    )
    with_block.load_state_dict(without.state_dict(), strict=False)
    images = torch.rand(3, 1, 12, 12)
    assert torch.equal(with_block(images), without(images))


def test_a_block_without_residual_connection_returns_its_branch():
    torch.manual_seed(0)
    network = NETWORKS["plain_network"](in_channels=1, num_classes=4).eval()
    block = network.trunk[-1]
    images = torch.rand(2, 8, 6, 6)
    assert torch.equal(block(images), block.activation(block.branch(images)))


def test_widths_and_depths_of_different_length_are_refused():
    with pytest.raises(UserError, match=r"widths=\[8, 16\] and depths=\[1\] differ in length"):
        ResNet(in_channels=1, num_classes=4, stem=[8], widths=[8, 16], depths=[1])


@pytest.mark.parametrize(("key", "value"), [("activation", "rellu"), ("normalisation", "layer")])
def test_an_unknown_activation_or_normalisation_lists_the_choices(key, value):
    with pytest.raises(UserError, match=f"model.network.{key}={value} is unknown: choose one of"):
        ResNet(in_channels=1, num_classes=4, stem=[8], widths=[8], depths=[1], **{key: value})


def test_an_ensemble_without_members_is_refused():
    with pytest.raises(UserError, match="members=0"):
        Ensemble(in_channels=1, num_classes=10, members=0, member=NETWORKS["resnet"])


def test_an_impossible_depth_of_a_wide_resnet_is_refused():
    with pytest.raises(UserError, match="depth=11"):
        WideResNet(in_channels=1, num_classes=10, depth=11, widen_factor=1)


def classifier(**settings):
    network = ResNet(in_channels=1, num_classes=4, stem=[8], widths=[8], depths=[1])
    return ImageClassifier(**{"network": network, "image_shape": (1, 12, 12), "num_classes": 4, **settings})


def test_a_classifier_is_built_from_objects_without_hydra():
    module = classifier(optimizer=torch.optim.AdamW, label_smoothing=0.1)
    batch = Batch(torch.rand(6, 1, 12, 12), torch.tensor([0, 1, 2, 3, 0, 1]), torch.arange(6))
    module._trainer = SimpleNamespace(is_last_batch=False)
    outputs = module.training_step(batch, 0)
    expected = nn.functional.cross_entropy(outputs["logits"], batch.targets, label_smoothing=0.1)
    assert torch.isclose(outputs["loss"], expected)
    assert isinstance(module.make_optimizer(total_steps=10)[0], torch.optim.AdamW)
    assert module.embed(batch.images).shape == (6, 8)


def test_weight_decay_excludes_biases_and_normalisation():
    module = classifier(optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1, weight_decay=0.5))
    decayed, spared = module.make_optimizer(total_steps=10)[0].param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.5, 0.0)
    assert {parameter.ndim for parameter in spared["params"]} == {1}
    assert len(decayed["params"]) + len(spared["params"]) == len(list(module.parameters()))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label_smoothing": 1.0}, "label_smoothing=1.0"),
        ({"image_shape": (3, 12, 12)}, r"\(3, 12, 12\)"),
        ({"image_shape": (1, 1, 1)}, r"\(1, 1, 1\)"),
        ({"num_classes": 5}, "5 classes"),
    ],
)
def test_settings_that_do_not_fit_the_network_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        classifier(**settings)


class ScaledHead(nn.Module):
    """A network of a user, with a lazy classifier whose logits are scaled."""

    def __init__(self, *, in_channels, num_classes):
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(in_channels, 8, 3), nn.ReLU())
        self.classifier = nn.LazyLinear(num_classes)

    def forward(self, images):
        return self.classifier(self.trunk(images).mean(dim=(2, 3))) / 9


FAMILIES = NETWORKS | {
    "torchvision": lambda **data: TorchvisionBackbone(name="mobilenet_v3_small", **data),
    "scaled_head": ScaledHead,
}
LOWER_PRECISIONS = [torch.bfloat16, torch.float16]


def family_module(name):
    network = FAMILIES[name](in_channels=1, num_classes=10)
    return ImageClassifier(network=network, image_shape=(1, 28, 28), num_classes=10)


@pytest.mark.parametrize("precision", LOWER_PRECISIONS, ids=str)
@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_computed_in_float32_under_autocast(name, precision):
    torch.manual_seed(0)
    module = family_module(name)
    images = torch.rand(6, 1, 28, 28)
    with torch.autocast("cpu", precision):
        trained = module(images)
        logits, features = module.eval()(images), module.embed(images)
    assert trained.dtype == logits.dtype == torch.float32
    assert features.dtype == precision, "the other layers keep the precision"
    layer = module.network.classifier
    expected = nn.functional.linear(features.double(), layer.weight.double(), layer.bias.double())
    torch.testing.assert_close(logits.double(), expected / (9 if name == "scaled_head" else 1), rtol=1e-5, atol=1e-6)
    trained.square().sum().backward()
    assert layer.weight.grad.dtype == torch.float32


def test_logits_closer_than_bfloat16_resolves_keep_their_order():
    module = family_module("resnet").eval()
    images = torch.rand(4, 1, 28, 28)
    with torch.no_grad():
        module.network.classifier.weight.zero_()
        module.network.classifier.bias.copy_(torch.tensor([*[0.0] * 5, 8.0, 8.001, 0.0, 0.0, 0.0]))
    with torch.autocast("cpu", torch.bfloat16):
        assert module(images).argmax(dim=1).tolist() == [6] * 4


def test_the_classifier_of_a_network_in_bfloat16_gives_float32():
    module = family_module("fast_cnn").bfloat16().eval()
    assert module(torch.rand(2, 1, 28, 28).bfloat16()).dtype == torch.float32


def test_a_classifier_in_float64_stays_in_float64():
    module = family_module("fast_cnn").double().eval()
    assert module(torch.rand(2, 1, 28, 28).double()).dtype == torch.float64


def test_a_classifier_of_another_class_is_left_alone():
    class Cosine(nn.Linear):
        pass

    network = NETWORKS["fast_cnn"](in_channels=1, num_classes=10)
    network.classifier = Cosine(32, 10)
    assert type(ImageClassifier(network=network, image_shape=(1, 28, 28), num_classes=10).network.classifier) is Cosine


def test_hooks_and_parameters_of_the_classifier_stay():
    network = NETWORKS["fast_cnn"](in_channels=1, num_classes=10)
    weight, inputs = network.classifier.weight, []
    network.classifier.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    module = ImageClassifier(network=network, image_shape=(1, 28, 28), num_classes=10)
    inputs.clear()
    copy.deepcopy(module)(torch.rand(2, 1, 28, 28))
    assert module.network.classifier.weight is weight
    assert len(inputs) == 1


class WaitingNetwork(ScaledHead):
    """A network that waits before its classifier until two threads are there."""

    barrier = None

    def forward(self, images):
        if self.barrier:
            self.barrier.wait(PATIENCE)
        return self.classifier(images.mean(dim=(2, 3)).repeat(1, 8))


def test_threads_get_the_embeddings_of_their_own_images():
    network = WaitingNetwork(in_channels=1, num_classes=10)
    module = ImageClassifier(network=network, image_shape=(1, 8, 8), num_classes=10).eval()
    network.barrier = threading.Barrier(2)
    with ThreadPoolExecutor(2) as threads:
        results = threads.map(module.logits_and_embeddings, [torch.full((1, 1, 8, 8), value) for value in (1.0, 2.0)])
        embeddings = [embedding for _, embedding in results]
    assert [embedding.unique().tolist() for embedding in embeddings] == [[1.0], [2.0]]


@pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0")
@pytest.mark.parametrize("autocast", [False, True])
def test_the_float32_classifier_can_be_compiled_and_exported(autocast):
    module = family_module("fast_cnn").eval()
    images = torch.rand(3, 1, 28, 28)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        expected = module(images)
        compiled = torch.compile(module.network, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(images), expected)
    if not autocast:
        program = torch.export.export(module.network, (images,))
        torch.testing.assert_close(program.module()(images), expected)
        assert "autocast" not in str(program.graph)
