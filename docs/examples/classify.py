"""Classify photographs with an exported network, without torch: the predictions of `python -m fashion_cnn.predict`.

The network is that of a run, or that of a catalogue of embedding=pretrained, which names classes of ImageNet.

pip install onnxruntime pillow numpy
pip install --no-deps fashion_cnn
python classify.py network.onnx shirt.jpg

`python classify.py network.onnx --metadata` prints what classify.js needs beside the network.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime

from fashion_cnn.inference.prediction import softmax
from fashion_cnn.pictures import Preparation, decode
from fashion_cnn.pictures.photographs import PretrainedSettings


def main(file: str, *paths: str) -> None:
    """Print the three most probable classes of each photograph."""
    network = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    stored = network.get_modelmeta().custom_metadata_map
    described = {key: json.loads(stored[key]) for key in ("class_names", "preparation", "settings") if key in stored}
    if paths == ("--metadata",):
        print(json.dumps(described))
        return
    names = described["class_names"]
    of_catalogue = "settings" in described
    if of_catalogue:
        prepare = PretrainedSettings(**described["settings"]).preparation
    else:
        preparation = described["preparation"]
        prepare = Preparation(**preparation | {"image_shape": tuple(preparation["image_shape"])})
    for path in paths:
        image = prepare.array(decode(Path(path), min_pixels=prepare.min_pixels))
        if of_catalogue:  # the graph takes photographs of any size, with the channels last
            (logits,) = network.run(["logits"], {"photographs": np.ascontiguousarray(image.transpose(1, 2, 0))[None]})
            probabilities = softmax(logits)[0]
        else:
            probabilities = network.run(["probabilities"], {"images": image[None]})[0][0]
        best = [(names[label], float(probabilities[label])) for label in probabilities.argsort()[::-1][:3]]
        print(json.dumps({"file": path, "classes": best}))


if __name__ == "__main__":
    main(*sys.argv[1:])
