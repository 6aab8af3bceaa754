"""Train a mixture of experts on digits, in one process or in several.

    KERAS_BACKEND=jax python examples/distributed.py
    keras-moe launch --backend jax --processes 2 examples/distributed.py

Both commands give the same losses, because the batches are the same, and each
process computes its part of them. On JAX and PyTorch every process holds a part
of the experts, and on TensorFlow all of them. Process 0 prints, and writes the
model and `results.json`. docs/from-laptop-to-cluster.md describes how to run on
several hosts.

B batch, S rows per image, D pixels per row.
"""

import json
import os
import time
from pathlib import Path
from typing import Annotated

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Threads that spin while they wait starve each other on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import keras
import numpy as np
import typer

import keras_moe
from keras_moe import distribution

NUM_EXPERTS, CLASSES, WIDTH = 8, 10, 32
BATCH_SIZE = 64  # of all processes together
TRAINING, HELD_OUT = 1536, 256  # whole batches
OUTPUT = Path(__file__).resolve().parents[1] / "saved_models" / "distributed"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help=__doc__.splitlines()[0])
def main(
    epochs: Annotated[int, typer.Option(min=1)] = 12,
    seed: Annotated[int, typer.Option()] = 0,
    output: Annotated[Path, typer.Option()] = OUTPUT,
    resume: Annotated[
        bool, typer.Option("--resume", help="resume from the last save")
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="one epoch, not accurate")
    ] = False,
):
    """Train and evaluate the model, save it, and report the results."""
    distribution.initialize()  # before anything is computed
    start = time.perf_counter()
    training, held_out = load_digits(seed)
    make, batches = layout()
    keras.utils.set_random_seed(seed)
    model = make()
    saves = distribution.BackupAndResume(output / "backup") if resume else None
    history = model.fit(
        **batches(*training),
        callbacks=[saves] if saves else None,
        epochs=1 if quick else epochs,
        shuffle=False,  # keeps the order of `load_digits` in all processes
        verbose=2 if distribution.process_index() == 0 else 0,
    ).history
    loss, accuracy = model.evaluate(**batches(*held_out), verbose=0)
    if distribution.process_index() == 0:
        output.mkdir(parents=True, exist_ok=True)
    # All processes call this, because each may hold a part of the weights.
    distribution.save_model(model, output / "model.keras")
    results = {
        "backend": keras.backend.backend(),
        "processes": distribution.process_count(),
        "losses": history["loss"],
        "held_out": {"loss": loss, "accuracy": accuracy},
        "seconds": round(time.perf_counter() - start, 1),
    }
    if distribution.process_index() == 0:
        report(results, output)


def load_digits(seed):
    """Return training and held-out images `(N, S, D)` and labels `(N,)`.

    Every process must have the same order, so it is drawn from the seed.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(seed).permutation(len(digits.images))
    x = digits.images[order].astype("float32") / 16
    y = digits.target[order].astype("int32")
    end = TRAINING + HELD_OUT
    training = x[:TRAINING], y[:TRAINING]
    return training, (x[TRAINING:end], y[TRAINING:end])


def layout():
    """Return functions that spread the model and its data over processes.

    Returns:
        A function that builds the model, and a function from images and labels
        to the arguments of `fit` for this process's part of them.
    """
    backend = keras.backend.backend()
    if backend == "jax":
        experts = distribution.expert_parallel()  # over all devices
        experts.auto_shard_dataset = False  # each process passes its part
        keras.distribution.set_distribution(experts)
        return make_model, own_arrays
    if distribution.process_count() == 1:
        return make_model, own_arrays
    if backend == "torch":
        return make_for_torch, own_arrays
    import tensorflow as tf

    strategy = tf.distribute.MultiWorkerMirroredStrategy()

    def make():
        with strategy.scope():
            return distribution.data_parallel(make_model())

    def own_dataset(*data):
        dataset = tf.data.Dataset.from_tensor_slices(
            distribution.local_shard(*data)
        )
        batches = dataset.batch(own_batch_size())
        return {
            "x": strategy.distribute_datasets_from_function(lambda _: batches)
        }

    return make, own_dataset


def make_for_torch():
    """Divide the experts among the processes, and average the gradients."""
    model = distribution.shard_experts(make_model())
    return distribution.data_parallel(model)


def own_arrays(x, y):
    """Return this process's part of each batch, as arguments of `fit`."""
    x, y = distribution.local_shard(x, y)
    return {"x": x, "y": y, "batch_size": own_batch_size()}


def own_batch_size():
    return BATCH_SIZE // distribution.data_shard().count


def make_model():
    """Return a compiled classifier of `(B, S, D)` with one token per row."""
    block = keras_moe.MoEBlock(
        NUM_EXPERTS,
        2 * WIDTH,
        top_k=2,
        load_balancing="global_batch",
        load_balancing_weight=0.01,
    )
    inputs = keras.Input((8, 8), name="image")
    x = keras.layers.Dense(WIDTH)(inputs)
    x = x + block(keras.layers.LayerNormalization()(x))
    x = keras.layers.Flatten()(x)
    outputs = keras.layers.Dense(CLASSES)(x)
    model = keras.Model(inputs, outputs, name="digits")
    model.compile(
        keras.optimizers.Adam(3e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def report(results, folder):
    """Print the results, and write them to a file."""
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    print(
        f"{results['backend']}, {results['processes']} process(es): held-out "
        f"accuracy {results['held_out']['accuracy']:.4f} after "
        f"{results['seconds']:.0f} s. Everything is in {folder}"
    )


if __name__ == "__main__":
    app()
