"""Classify photographs with an exported network, without torch: the predictions of `python -m fashion_cnn.predict`.

pip install onnxruntime pillow numpy
pip install --no-deps fashion_cnn
python classify.py network.onnx shirt.jpg

`python classify.py network.onnx --metadata` prints what classify.js needs beside the network.
"""

import json
import sys
from pathlib import Path

import onnxruntime

from fashion_cnn.pictures import Preparation, decode


def main(file: str, *paths: str) -> None:
    """Print the three most probable classes of each photograph."""
    network = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    stored = network.get_modelmeta().custom_metadata_map
    names, preparation = json.loads(stored["class_names"]), json.loads(stored["preparation"])
    if paths == ("--metadata",):
        print(json.dumps({"class_names": names, "preparation": preparation}))
        return
    prepare = Preparation(**preparation | {"image_shape": tuple(preparation["image_shape"])})
    for path in paths:
        image = prepare.array(decode(Path(path), min_pixels=prepare.min_pixels))
        (probabilities,) = network.run(["probabilities"], {"images": image[None]})
        best = [(names[label], float(probabilities[0, label])) for label in probabilities[0].argsort()[::-1][:3]]
        print(json.dumps({"file": path, "classes": best}))


if __name__ == "__main__":
    main(*sys.argv[1:])
