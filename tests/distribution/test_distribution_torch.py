"""Compare two PyTorch processes, replicated or sharded, with one process."""

import re

import distributed_model
import exchange_cases
import hidden_weights
import keras
import numpy as np
import pytest
from backend import BACKEND
from two_processes import run_two_processes

LAYOUTS = {
    "some": ("experts", "both"),
    "everything": ("replicated", "experts", "copies", "parts", "both"),
}
RECEIVED = {
    "dense": "which has no mixture of experts",
    "soft": "SoftMoE",
    "gates": "MultiGateMoE",
    "layers": "with experts of ExpertLayers",
}
PRINTED = {
    "twice": "ValueError: `model` must not be sharded already.",
    "alone": "RuntimeError: 'classifier' must be trained by all processes",
    "save a part": "RuntimeError: 'experts' must hold all its experts",
    "odd": "ValueError: `num_experts` must be a multiple of the number",
    "processes": "ValueError: `processes` must divide the number of processes",
    "dense": "ValueError: `model` must have a MoEBlock whose `experts`",
    "soft": "ValueError: `model` must have a MoEBlock whose `experts`",
    "gates": "ValueError: `model` must have a MoEBlock whose `experts`",
    "layers": "ValueError: `model` must have a MoEBlock whose `experts`",
    "scalar": "ValueError: `fully_sharded` must be False if a weight is a",
    "unbuilt": "ValueError: `model` must be built",
    "parted": "ValueError: `model` must not be fully sharded already",
    "clipnorm": "ValueError: `clipnorm` must be None if experts are sharded",
    "global_clipnorm": "ValueError: `global_clipnorm` must be None",
}

pytestmark = pytest.mark.skipif(
    BACKEND != "torch", reason="torch.distributed is PyTorch's"
)


def same_names(found):
    """Shorten the paths of a given router, as in a loaded model."""
    return {k.replace("moe/router", "router"): v for k, v in found.items()}


def check_equal(found, expected):
    """Assert that losses and weights are equal to 1e-5."""
    expected = same_names(expected)
    found = same_names(found)
    found = {name: found[name] for name in expected}
    distance, where = distributed_model.furthest(found, expected)
    assert distance <= 1e-5, where


def check_layout(found, name, alone, model, folder):
    """Compare five steps, an evaluation, and a file with one process."""
    check_equal(found, alone)
    x, y = distributed_model.make_data()
    whole = model.evaluate(x, y, batch_size=16, verbose=0)
    np.testing.assert_allclose(found["evaluation"], whole, atol=1e-5)
    loaded = keras.models.load_model(folder / f"{name}.keras")
    weights = distributed_model.weights_of(loaded)
    check_equal({**weights, "losses": alone["losses"]}, alone)
    for one, other in zip(
        loaded.optimizer.variables, model.optimizer.variables, strict=True
    ):
        np.testing.assert_allclose(one.numpy(), other.numpy(), atol=1e-5)


def check_memory(both, model):
    """Assert that sharded weights are held once, and others by each process."""

    def size(variables):
        return sum(4 * v.value.numel() for v in variables)

    trained = model.trainable_weights
    experts = size(w for w in trained if "experts" in w.path)
    dense = size(w for w in trained if "experts" not in w.path)
    # SGD with momentum has one slot per weight.
    expected = {
        "replicated": (2 * experts, 2 * dense, 2 * experts + 2 * dense),
        "copies": (2 * experts, 2 * dense, 2 * experts + 2 * dense),
        "experts": (experts, 2 * dense, experts + 2 * dense),
        "parts": (experts, dense, experts + dense),
        "both": (experts, dense, experts + dense),
    }
    for name in both[0].keys() & expected.keys():
        sizes = expected[name]
        for kind, total in zip(("expert", "dense", "slot"), sizes, strict=True):
            held = [int(found[name][f"{kind}_bytes"]) for found in both]
            assert sum(held) == total, (name, kind)
            assert kind != "expert" or held[0] == held[1]


def check_exchange(both):
    """Compare values and gradients with a loop over all rows."""
    for name, sizes in exchange_cases.SIZES.items():
        kernel, rows, upstream = exchange_cases.drawn(name)
        gradient = np.zeros_like(kernel)
        for rank, found in enumerate(both):
            y, dx = np.zeros_like(upstream[rank]), np.zeros_like(rows[rank])
            expert = np.repeat(np.arange(exchange_cases.EXPERTS), sizes[rank])
            for p, e in enumerate(expert):
                y[p] = rows[rank][p] @ kernel[e]
                dx[p] = kernel[e] @ upstream[rank][p]
                # The loss is the mean of the losses of the two processes.
                gradient[e] += np.outer(rows[rank][p], upstream[rank][p]) / 2
            close(found[f"{name}/y"], y)
            close(found[f"{name}/x gradient"], dx)
            assert found[f"{name}/sent"].tolist() == messages(sizes, rank)
        for rank, found in enumerate(both):
            own = gradient[2 * rank : 2 * rank + 2]
            close(found[f"{name}/kernel gradient"], own)


def messages(sizes, rank):
    """Return the rows for each process and all numbers that a process sends.

    Each row is sent once, without padding, to its expert and back. The
    gradients are sent in the same way.
    """
    wide, thin = exchange_cases.WIDTH, exchange_cases.OUT
    there = [sum(sizes[rank][:2]), sum(sizes[rank][2:])]
    back = [sum(own[2 * rank : 2 * rank + 2]) for own in sizes]
    return [
        [*there, sum(there) * wide],
        [*back, sum(back) * thin],
        [*there, sum(there) * thin],
        [*back, sum(back) * wide],
    ]


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def check_state(both):
    """Assert that both states are equal, and the moving mean is of all rows."""
    for name, value in both[0].items():
        np.testing.assert_array_equal(value, both[1][name], err_msg=name)
    x = np.random.default_rng(0).normal(size=(2, 2, 4))
    # Three steps with momentum 0.5 move a mean from 0 by 1 - 0.5 ** 3.
    mean = x.reshape(-1, 4).mean(axis=0) * (1 - 0.5**3)
    close(both[0]["weight/norm/moving_mean"], mean)
    assert both[0]["frozen moved"] > 1e-4


@pytest.mark.parametrize(
    "runs", ["some", pytest.param("everything", marks=pytest.mark.slow)]
)
def test_two_processes_are_one(runs, tmp_path):
    """Two Python processes are started once for all runs."""
    layouts = LAYOUTS[runs]
    penalty = keras.regularizers.L2(0.001)
    model = distributed_model.make_model(kernel_regularizer=penalty)
    x, y = distributed_model.make_data()
    first = {"losses": distributed_model.train(model, x, y, batch_size=16)}
    first |= distributed_model.weights_of(model)
    model.save(tmp_path / "single.keras")
    both = run_two_processes(tmp_path, runs)
    for rank, found in enumerate(both):
        for name in layouts:
            check_layout(found[name], name, first, model, tmp_path)
        rows = x.reshape(5, 2, 8, 4, 16)[:, rank].reshape(-1, 4, 16)[: 9 - rank]
        predicted = model.predict(rows, verbose=0)
        for name in layouts:
            close(found[name]["predicted"], predicted)
        close(found["experts"]["gathered"], predicted)
        for name, expected in PRINTED.items():
            assert RECEIVED.get(name, "") in str(found["errors"][name]), name
            assert str(found["errors"][name]).startswith(expected), name
    assert both[0].keys() & set(LAYOUTS["everything"]) == set(layouts)
    check_memory(both, model)
    check_exchange([found["exchange"] for found in both])
    check_state([found["state"] for found in both])
    more = {"losses": distributed_model.train(model, x, y, batch_size=16)}
    more |= distributed_model.weights_of(model)
    names = ("resumed experts", "resumed both")
    resumed = names if runs == "everything" else ()
    for found in both:
        for name in resumed:
            check_equal(found[name], more)
            again = found[name]["losses again"]
            np.testing.assert_array_equal(found[name]["losses"], again)


@pytest.mark.parametrize(
    "names",
    [
        ("weighted", "together"),
        pytest.param(tuple(hidden_weights.CASES), marks=pytest.mark.slow),
    ],
)
def test_hidden_weights_and_parts_of_models_train_alike(names, tmp_path):
    """No process waits for gradients of weights that the model does not train.

    A part that is fitted alone trains on the batches of both processes.
    """
    script = "hidden_weights_torch.py"
    both = run_two_processes(tmp_path, *names, script=script)
    for name in names:
        alone = hidden_weights.train(
            name, slice(None), hidden_weights.BATCH, lambda model: model
        )
        for found in both:
            for layout, losses in found[name].items():
                np.testing.assert_allclose(
                    losses, alone, rtol=1e-5, err_msg=f"{name}, {layout}"
                )
    expected = {
        "fitted_part": "RuntimeError: .* must be trained before data_parallel",
        "sharded_part": "ValueError: `fully_sharded` must be False for a part",
        "around_a_sharded_part": "ValueError: `model` must not be fully",
        "nothing_to_shard": "ValueError: `fully_sharded` must be False for a",
    }
    for name, message in expected.items():
        assert re.match(message, str(both[0]["errors"][name])), name


def test_the_error_without_torchrun_names_a_remedy(monkeypatch):
    from keras_moe.distribution.torch_parallel import data_parallel

    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(RuntimeError, match="without RANK.*keras-moe launch"):
        data_parallel(distributed_model.make_model())
