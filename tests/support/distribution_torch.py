"""Run the tests' part of one of two PyTorch processes.

Run `python distribution_torch.py FOLDER RUNS` with torchrun's variables. RUNS
is `some` or `everything`. The results go to `FOLDER/RANK.npz`.
"""

import os
import pathlib
import sys

import light_keras  # noqa: F401

# isort: split
import distributed_model
import exchange_cases
import keras
import numpy as np
import torch
from torch import distributed

import keras_moe
from keras_moe.distribution.torch_experts import gather_experts, shard_experts
from keras_moe.distribution.torch_parallel import data_parallel
from keras_moe.distribution.torch_saving import whole
from keras_moe.kernels import grouped_matmul
from keras_moe.kernels.torch import exchange

RANK, PROCESSES = int(os.environ["RANK"]), 2


def share(array, process=None):
    """Return a process's half of each batch, by default this process's."""
    process = RANK if process is None else process
    steps = distributed_model.STEPS
    parts = array.reshape(steps, PROCESSES, -1, *array.shape[1:])
    return parts[:, process].reshape(-1, *array.shape[1:])


def train(model):
    """Train five steps on half batches; return the loss of each step."""
    x, y = distributed_model.make_data()
    batch = distributed_model.BATCH // PROCESSES
    return distributed_model.train(model, share(x), share(y), batch_size=batch)


def own_bytes(variables):
    """Return the bytes of Keras variables that this process holds."""
    found = [v.value for v in variables]
    found = [t.to_local() if hasattr(t, "to_local") else t for t in found]
    return sum(t.numel() * t.element_size() for t in found)


def kernels_of(model):
    return [w for w in model.weights if "experts" in w.path]


def make_model(seed=0):
    """Return the tests' model, with a regularizer on its expert kernels."""
    penalty = keras.regularizers.L2(0.001)
    return distributed_model.make_model(seed, kernel_regularizer=penalty)


def run_layout(folder, name, sharded=False, processes=None, **options):
    """Train, evaluate, and save in one layout; return a dict of arrays."""
    model = make_model(seed=RANK)  # `data_parallel` copies rank 0's weights
    if sharded:
        shard_experts(model, processes)
    data_parallel(model, **options)
    found = {"losses": train(model)}
    found["expert_bytes"] = own_bytes(kernels_of(model))
    found["slot_bytes"] = own_bytes(
        [slot for slot in model.optimizer.variables if slot.shape]
    )
    found["dense_bytes"] = own_bytes(
        [w for w in model.trainable_weights if "experts" not in w.path]
    )
    x, y = (share(a) for a in distributed_model.make_data())
    found["evaluation"] = model.evaluate(x, y, batch_size=8, verbose=0)
    model.save(folder / f"{name}.keras")
    with whole(model):
        found |= distributed_model.weights_of(model)
    model.set_weights(model.get_weights())  # as EarlyStopping does
    # The second process has fewer rows in as many batches.
    rows = x[: 9 - RANK]
    found["predicted"] = model.predict(rows, batch_size=8 - RANK, verbose=0)
    if name == "experts":
        gather_experts(model)
        found["gathered"] = model.predict(rows, verbose=0)
    return found


def resume(path, sharded, **options):
    """Resume from one process's file; save, train, load, and train again."""
    model = keras.models.load_model(path)
    if sharded:
        shard_experts(model)
    data_parallel(model, **options)
    copy = path.with_name("again.weights.h5")
    model.save_weights(copy)
    distributed.barrier()
    found = {"losses": train(model)}
    model.load_weights(copy)
    found["losses again"] = train(model)
    with whole(model):
        return found | distributed_model.weights_of(model)


def exchanged():
    """Return values, gradients, and sent sizes for each case of SIZES."""
    sent = []
    original = distributed.all_to_all_single

    def counting(output, input, received=None, splits=None, group=None):
        if splits is not None:
            sent.append([*splits, input.numel()])
        return original(output, input, received, splits, group=group)

    found = {}
    for name, sizes in exchange_cases.SIZES.items():
        kernel, rows, upstream = exchange_cases.drawn(name)
        x = torch.tensor(rows[RANK], requires_grad=True)
        own = torch.tensor(kernel[2 * RANK :][:2], requires_grad=True)
        sent.clear()
        exchange.distributed.all_to_all_single = counting
        y = exchange.exchange_rows(
            lambda rows, sizes, own=own: grouped_matmul(rows, own, sizes),
            x,
            torch.tensor(sizes[RANK], dtype=torch.int32),
        )
        (y * torch.tensor(upstream[RANK])).sum().backward()
        exchange.distributed.all_to_all_single = original
        found |= {
            f"{name}/y": y.detach().numpy(),
            f"{name}/x gradient": x.grad.numpy(),
            f"{name}/kernel gradient": own.grad.numpy(),
            f"{name}/sent": np.array(sent),
        }
    return found


def other_state():
    """Train a model with other state, and return its history and variables.

    The model has a BatchNormalization, a frozen layer, idle experts, seeds, and
    a router whose loss reads a weight that the router then changes.
    """
    inputs = keras.Input((4,))
    x = keras.layers.BatchNormalization(momentum=0.5, name="norm")(inputs)
    x = keras.layers.Dense(4, name="frozen", trainable=False)(x)
    x = keras.layers.Dropout(0.5, seed=RANK)(x)
    block = keras_moe.MoEBlock(8, 4, router=keras_moe.Router(8, 1), name="moe")
    sparse = keras_moe.MoEBlock(2, 4, router=keras_moe.ReLURouter(2))
    model = keras.Model(inputs, sparse(block(x)))
    model.compile("adam", "mse", metrics=[keras.metrics.RootMeanSquaredError()])
    data_parallel(model)
    frozen = model.get_layer("frozen").get_weights()[0].copy()
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 2, 4)).astype("float32")  # one row, few experts
    stop = keras.callbacks.EarlyStopping("val_loss", start_from_epoch=99)
    history = model.fit(
        x[RANK],
        x[RANK],
        batch_size=2,
        epochs=2,
        validation_data=(x[RANK], x[RANK]),
        callbacks=[stop],
        verbose=0,
    ).history
    model.get_layer("frozen").trainable = True
    model.compile("adam", "mse")
    model.fit(x[RANK], x[RANK], batch_size=2, verbose=0)
    after = model.get_layer("frozen").get_weights()[0]
    found = {f"history/{name}": value for name, value in history.items()}
    found |= {f"weight/{v.path}": v.numpy() for v in model.variables}
    return {**found, "frozen moved": np.abs(after - frozen).max()}


def message_of(function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except (ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was raised"


def clipped(**options):
    model = data_parallel(shard_experts(make_model()))
    model.compile(keras.optimizers.SGD(**options), model.loss)
    train(model)


class Scalar(keras.layers.Layer):
    """A layer with one weight that has no axes."""

    def build(self, input_shape):
        self.scale = self.add_weight(shape=(), initializer="ones")

    def call(self, x):
        return x * self.scale


def model_of(layer):
    """Return a model of one layer on tokens of width 4."""
    inputs = keras.Input((3, 4))
    return keras.Model(inputs, layer(inputs))


def errors(folder):
    """Return the error message of each call that is not possible."""
    sharded = shard_experts(make_model())
    other = keras.Model(sharded.input, sharded.get_layer("moe").output)
    dense = keras.Sequential([keras.Input((2,)), Scalar()])
    layers = [keras.layers.Dense(4) for _ in range(2)]
    of_layers = keras_moe.MoEBlock(2, experts=layers)
    odd = keras.Sequential([keras.Input((4,)), keras_moe.MoEBlock(3, 4)])
    unbuilt = keras.Sequential([keras.layers.Dense(2)])
    parted = data_parallel(make_model(), fully_sharded=True)
    return {
        "twice": message_of(shard_experts, sharded),
        "alone": message_of(train, sharded),
        "save a part": message_of(other.save, folder / f"{RANK}.keras"),
        "odd": message_of(shard_experts, odd),
        "processes": message_of(shard_experts, odd, processes=3),
        "dense": message_of(shard_experts, dense),
        "soft": message_of(shard_experts, model_of(keras_moe.SoftMoE(2, 4))),
        "gates": message_of(
            shard_experts, model_of(keras_moe.MultiGateMoE(2, 2, 4))
        ),
        "layers": message_of(shard_experts, model_of(of_layers)),
        "scalar": message_of(data_parallel, dense, fully_sharded=True),
        "unbuilt": message_of(data_parallel, unbuilt),
        "parted": message_of(data_parallel, parted),
        "clipnorm": message_of(clipped, clipnorm=1.0),
        "global_clipnorm": message_of(clipped, global_clipnorm=1.0),
    }


def everything(folder):
    """Return every run by name."""
    single = folder / "single.keras"
    return {
        **some(folder),
        "replicated": run_layout(folder, "replicated"),
        "copies": run_layout(folder, "copies", sharded=True, processes=1),
        "parts": run_layout(folder, "parts", fully_sharded=True),
        "resumed experts": resume(single, sharded=True),
        "resumed both": resume(single, sharded=True, fully_sharded=True),
    }


def some(folder):
    """Return the runs of `make test`."""
    return {
        "experts": run_layout(folder, "experts", sharded=True),
        "both": run_layout(folder, "both", sharded=True, fully_sharded=True),
        "exchange": exchanged(),
        "state": other_state(),
        "errors": errors(folder),
    }


def main(folder, runs):
    """Do every run in this process, because starting Python is expensive."""
    torch.set_num_threads(1)
    found_by_run = {"some": some, "everything": everything}[runs](folder)
    arrays = {
        f"{run}:{name}": value
        for run, found in found_by_run.items()
        for name, value in found.items()
    }
    np.savez(folder / f"{RANK}.npz", **arrays)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), sys.argv[2])
