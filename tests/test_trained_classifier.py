"""fashion_cnn.load: classes, probabilities and embeddings of arrays and pictures, and what it refuses."""

import numpy as np
import pytest
import torch
from PIL import Image

import fashion_cnn
from fashion_cnn.errors import UserError
from fashion_cnn.inference.network import load_data
from fashion_cnn.inference.predictor import Predictor, load_calibration


@pytest.fixture(scope="module")
def network(shop_run):
    return fashion_cnn.load(shop_run.path)


@pytest.fixture(scope="module")
def split(shop_run):
    data = load_data(shop_run)
    return data.val_split.images, data.val_split.targets


def pictures(images):
    return [Image.fromarray(image[0].numpy()) for image in images]


FORMS = {
    "uint8 tensor": lambda images: images,
    "uint8 array": lambda images: images.numpy(),
    "no channel": lambda images: images[:, 0].numpy(),
    "channels last": lambda images: images.permute(0, 2, 3, 1).numpy(),
    "0 to 1": lambda images: images.float() / 255,
    "0 to 1, float64": lambda images: images.numpy() / 255,
    "whole floats": lambda images: images.float(),
    "int64": lambda images: images.long(),
    "pictures": pictures,
    "colour pictures": lambda images: [picture.convert("RGB") for picture in pictures(images)],
    "a list of arrays": lambda images: [image.numpy() for image in images],
    "a list of tensors and pictures": lambda images: [images[0], *pictures(images[1:])],
    "pictures and float arrays": lambda images: [*pictures(images[:2]), *(images[2:, 0].numpy() / 255)],
    "reversed and read-only": lambda images: np.broadcast_to(images.numpy()[::-1], images.shape)[::-1],
    "with a gradient": lambda images: (images.float() / 255).requires_grad_(),
    "palette pictures": lambda images: [picture.convert("P") for picture in pictures(images)],
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("form", FORMS)
def test_images_in_any_form_have_the_same_classes(network, split, form):
    images, _ = split
    expected = network.predict(images)
    assert expected.dtype == np.int64
    assert expected.shape == (len(images),)
    assert np.array_equal(network.predict(FORMS[form](images)), expected)


def test_bool_images_are_black_and_white(network, split):
    masks = split[0] > 127
    expected = masks.to(torch.uint8) * 255
    for form in (masks, masks.numpy(), [mask.numpy() for mask in masks]):
        assert network.prepare(form).equal(expected)


def test_the_accuracy_is_that_of_the_results(network, split, shop_run):
    images, targets = split
    assert (network.predict(images) == targets.numpy()).mean() == pytest.approx(shop_run.results()["val/accuracy"])


def test_one_image_has_one_prediction(network, split):
    image = split[0][0]
    for form in (image, image[0], image.permute(1, 2, 0).numpy(), pictures(image[None])[0]):
        assert network.predict(form).shape == (1,)
    assert network.predict([]).shape == (0,)


def test_probabilities_are_those_of_the_command(network, split, shop_run, tmp_path):
    file = tmp_path / "a.png"
    pictures(split[0])[0].save(file)
    probabilities = network.predict_proba(file)
    assert probabilities.shape == (1, 4)
    assert probabilities.sum() == pytest.approx(1)
    calibration, _ = load_calibration(shop_run, reject=0.0)
    (prediction,) = Predictor(network._network, calibration).predict([file], top_k=1)
    assert prediction.classes[0][0] == network.class_names[probabilities.argmax()]
    assert prediction.classes[0][1] == pytest.approx(probabilities.max())


def test_embeddings_are_unit_vectors_and_the_module_takes_normalised_images(network, split):
    images, _ = split
    embeddings = network.embed(images)
    assert embeddings.shape == (len(images), 16)
    assert np.allclose((embeddings**2).sum(axis=1), 1, atol=1e-5)
    mean, std = (torch.tensor(part).view(1, -1, 1, 1) for part in (network.mean, network.std))
    with torch.no_grad():
        logits = network.module((images / 255 - mean) / std)
    assert np.array_equal(logits.argmax(dim=1).numpy(), network.predict(images))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda images: (images / 255 - 0.286) / 0.353, r"from -0\.81.* to .*They look normalised"),
        (lambda images: images / 100, r"float32 values from 0 to 2\.\d+\. Give uint8"),
        (lambda images: images.long() * 10, "int64 values from 0 to"),
        (lambda images: images / torch.tensor(torch.nan), "values from nan to nan"),
        (lambda images: images[..., :19], r"shape \(32, 1, 20, 19\) do not fit: the network takes \(N, 1, 20, 20\)"),
        (lambda images: images.expand(-1, 3, -1, -1), r"shape \(32, 3, 20, 20\) do not fit"),
        (lambda images: images.numpy() / 100.0, r"images have float64 values from 0 to 2\.\d+\. Give uint8"),
        (
            lambda images: [images[0].numpy(), 3],
            "images hold a int: give an array or tensor, a PIL picture, a path",
        ),
        (lambda images: [images[0].numpy(), "a.png"], "a.png cannot be read"),
        (lambda images: [images[0], images[0, 0]], r"different shapes, \(1, 20, 20\) and \(20, 20\)"),
        (lambda images: [images[:2]], r"shape \(1, 2, 1, 20, 20\) do not fit"),
        (lambda images: images.numpy().astype(str), "images are an array of <U"),
    ],
)
def test_other_ranges_and_sizes_are_refused(network, split, change, message):
    with pytest.raises(UserError, match=message):
        network.predict(change(split[0]))


def test_the_checkpoint_is_read_once_and_must_fit_the_code(shop_run, monkeypatch):
    read, files = torch.load, []
    monkeypatch.setattr(torch, "load", lambda file, **settings: files.append(file) or read(file, **settings))
    fashion_cnn.load(shop_run.path)
    assert files == [shop_run.weights], "what was checked is what is loaded"
    state = read(shop_run.weights, weights_only=True)
    state["hyper_parameters"]["network"]["widths"] = [8, 8]
    monkeypatch.setattr(torch, "load", lambda file, **settings: state)
    with pytest.raises(UserError, match=r"does not fit .*ImageClassifier: the code or the file"):
        fashion_cnn.load(shop_run.path)


def test_files_that_cannot_be_read_are_named_in_one_message(network, split, tmp_path):
    good, bad = tmp_path / "good.png", tmp_path / "bad.jpg"
    pictures(split[0][:1])[0].resize((64, 64)).save(good)
    bad.write_text("text")
    with pytest.raises(UserError, match=r"nothere.jpg cannot be read \(No such file or directory\)"):
        network.predict("nothere.jpg")
    with pytest.raises(UserError, match=r"bad.jpg is not a picture"):
        network.predict([good, bad])
    with pytest.raises(UserError, match=r"is a folder: give its files"):
        network.predict(tmp_path)


@pytest.mark.parametrize("images", [None, 3])
def test_a_value_that_is_no_image_is_refused(network, images):
    with pytest.raises(UserError, match=f"images={images} is no image"):
        network.predict(images)
