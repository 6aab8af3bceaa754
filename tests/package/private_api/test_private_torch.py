"""Check the effect of each private name of PyTorch.

If a test fails with another version of PyTorch, change the function of
`keras_moe/_torch.py`. `test_private_names.py` compares the names.
"""

import keras
import numpy as np
import pytest
from backend import BACKEND
from private_names import of

if BACKEND != "torch":
    pytest.skip("private names of PyTorch", allow_module_level=True)

import torch
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from keras_moe import _torch


@of(
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_has_any_global_hook",
)
def test_every_kind_of_hook_is_detected():
    layer = keras.layers.Dense(1)
    layer.build((None, 1))
    everywhere = torch.nn.modules.module
    for register in (
        layer.register_forward_hook,
        layer.register_forward_pre_hook,
        layer.register_full_backward_hook,
        layer.register_full_backward_pre_hook,
        everywhere.register_module_forward_hook,
        everywhere.register_module_forward_pre_hook,
        everywhere.register_module_full_backward_hook,
        everywhere.register_module_full_backward_pre_hook,
    ):
        assert not _torch.has_hooks(layer)
        handle = register(lambda *args: None)
        assert _torch.has_hooks(layer), register.__name__
        handle.remove()


@of("_C", "_current_graph_task_id")
def test_backward_is_detected():
    seen = []
    x = torch.ones(1, requires_grad=True)
    x.register_hook(lambda dy: seen.append(_torch.is_in_backward()))
    y = (2 * x).sum()
    assert not _torch.is_in_backward()
    y.backward()
    assert seen == [True]
    assert not _torch.is_in_backward()


@of("_autograd", "_top_saved_tensors_default_hooks")
def test_a_checkpoint_is_detected_by_its_hooks():
    seen = []

    def run(x):
        seen.append(_torch.saves_through_hooks())
        return x**2

    x = torch.ones(1, requires_grad=True)
    run(x)
    checkpoint(run, x, use_reentrant=False)
    assert seen == [False, True]


@of("_are_functorch_transforms_active", "_current_level")
def test_transforms_are_detected():
    seen = []

    def run(x):
        seen.append(_torch.transforms_run())
        return x.sum()

    run(torch.ones(1))
    torch.func.grad(run)(torch.ones(1))
    torch.func.vmap(run)(torch.ones(1, 1))
    with forward_ad.dual_level():
        run(torch.ones(1))
    run(torch.ones(1))
    assert seen == [False, True, True, True, False]


@of("_functorch")
def test_a_batch_of_gradients_is_detected():
    seen = []
    x = torch.ones(2, requires_grad=True)
    x.register_hook(lambda dy: seen.append(_torch.is_batch_of_gradients(dy)))
    y = 2 * x
    torch.autograd.grad(y, x, torch.ones(2), retain_graph=True)
    torch.autograd.grad(y, x, torch.eye(2), is_grads_batched=True)
    assert seen == [False, True]


@of("_version")
def test_a_version_grows_when_a_tensor_is_written():
    x = torch.ones(2)
    before = _torch.version_of(x)
    x + 1
    assert _torch.version_of(x) == before
    x[:1].add_(1)
    assert _torch.version_of(x) > before


@of("_int_mm")
def test_integers_are_multiplied():
    assert _torch.has_integer_matmul()
    rng = np.random.default_rng(0)
    x, y = rng.integers(-128, 128, (2, 32, 32), "int8")
    out = torch.empty(32, 32, dtype=torch.int32)
    _torch.integer_matmul(torch.tensor(x), torch.tensor(y), out)
    expected = x.astype("int64") @ y.astype("int64")
    np.testing.assert_array_equal(out.numpy(), expected)


@of("_check")
def test_a_trace_uses_an_assumption():
    class Counted(torch.nn.Module):
        def forward(self, count):
            n = count.item()
            _torch.assume(n >= 2)
            return count + (1 if n >= 2 else 0)

    exported = torch.export.export(Counted(), (torch.tensor(3),))
    assert exported.module()(torch.tensor(5)) == 6
    with pytest.raises(RuntimeError):
        _torch.assume(False)
