"""Short epochs of the Keras notebook's network, for scripts/benchmark; runs in an environment with TensorFlow.

    python scripts/benchmarks/keras_epochs.py DATA.npz    prints the seconds of an epoch for each line on standard input
    python scripts/benchmarks/keras_epochs.py DATA.npz --until 0.9261    trains until it reaches this test accuracy

DATA.npz holds `train.images` (N, 28, 28, 1) uint8 and `train.targets` (N,), and likewise `probe.…` and `val.…`, or
`test.…`.
"""

import os
import sys
import time

import keras
import numpy as np


def network():
    layers = keras.layers
    model = keras.Sequential(
        [
            layers.Input((28, 28, 1)),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Dropout(0.25),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Dropout(0.25),
            layers.Conv2D(128, 3, activation="relu"),
            layers.Dropout(0.4),
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
            layers.Dropout(0.3),
            layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def read(data, split):
    return data[f"{split}.images"].astype(np.float32) / 255, data[f"{split}.targets"]


def answer_with_epochs(model, data):
    train = read(data, "train")
    # The pipeline evaluates the train probe and the validation set in each epoch.
    measured = [np.concatenate(parts) for parts in zip(read(data, "probe"), read(data, "val"), strict=True)]
    print("ready", flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        model.fit(*train, batch_size=128, epochs=1, validation_data=measured, validation_batch_size=250, verbose=0)
        print(time.perf_counter() - started, flush=True)


def train_until(model, data, target, max_epochs=100):
    """Print epoch, seconds since the start of this process without those of evaluations, and test accuracy."""
    train, test = read(data, "train"), read(data, "test")
    evaluating = 0.0
    for epoch in range(1, max_epochs + 1):
        model.fit(*train, batch_size=128, epochs=1, verbose=0)
        started = time.time()
        seconds = started - evaluating - float(os.environ["PROCESS_STARTED"])
        accuracy = model.evaluate(*test, batch_size=250, verbose=0)[1]
        evaluating += time.time() - started
        print(f"epoch {epoch}, {seconds:.1f} s, test accuracy {accuracy:.4f}", flush=True)
        if accuracy >= target:
            return
    sys.exit(f"error: test accuracy {target} was not reached in {max_epochs} epochs")


if __name__ == "__main__":
    keras.utils.set_random_seed(0)
    arrays = np.load(sys.argv[1])
    if "--until" in sys.argv:
        train_until(network(), arrays, float(sys.argv[sys.argv.index("--until") + 1]))
    else:
        answer_with_epochs(network(), arrays)
