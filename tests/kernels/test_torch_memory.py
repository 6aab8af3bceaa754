"""A bank's gradient reuses the memory of the last one if that is free."""

import gc
import weakref

import keras
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from keras_moe import kernels  # noqa: E402

if keras.backend.backend() != "torch":
    pytest.skip("PyTorch's memory", allow_module_level=True)

E, D, F = 4, 256, 512  # a bank of 2 MB
SIZES = torch.tensor([3, 0, 5, 2], dtype=torch.int32)


@pytest.fixture
def bank():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(E, D, F, generator=generator).requires_grad_()


def gradient_of(bank, scale=1.0):
    """Return the gradient of sum(scale * x[p] @ bank[e]), and check it."""
    x = scale * torch.arange(10 * D, dtype=torch.float32).reshape(10, D)
    y = kernels.grouped_matmul(x, bank, SIZES)
    (gradient,) = torch.autograd.grad(y.sum(), bank)
    ends = np.cumsum(SIZES.numpy())
    sums = [x[end - n : end].sum(0) for n, end in zip(SIZES, ends, strict=True)]
    torch.testing.assert_close(
        gradient, torch.stack(sums)[:, :, None].expand(E, D, F)
    )
    return gradient


def test_the_next_gradient_is_written_where_the_last_one_was(bank):
    place = gradient_of(bank).data_ptr()
    assert place % 64 == 0
    assert gradient_of(bank, scale=2.0).data_ptr() == place


def test_a_gradient_with_a_reference_is_not_overwritten(bank):
    """A view of the gradient is such a reference."""
    first = gradient_of(bank)
    held = first[2, :, 0]
    before = held.clone()
    del first
    second = gradient_of(bank, scale=3.0)
    torch.testing.assert_close(held, before)
    torch.testing.assert_close(second[2, :, 0], 3 * before)


HOLDERS = {
    "array": torch.Tensor.numpy,
    "buffer": lambda gradient: memoryview(gradient.numpy()),
    "capsule": lambda gradient: np.from_dlpack(gradient),
}


@pytest.mark.parametrize("of", HOLDERS.values(), ids=HOLDERS)
def test_a_gradient_that_other_objects_share_is_not_overwritten(bank, of):
    held = of(gradient_of(bank))
    before = gradient_of(bank)
    gradient_of(bank, scale=3.0)
    np.testing.assert_array_equal(np.asarray(held), before.numpy())


def test_the_memory_of_a_released_gradient_is_reused(bank):
    """A third gradient reuses the first one's memory once that is free."""
    first = gradient_of(bank)
    place = first.data_ptr()
    assert gradient_of(bank).data_ptr() != place
    del first
    assert gradient_of(bank).data_ptr() == place


def test_none_is_kept_if_processes_reduce_gradients(bank, monkeypatch):
    from keras_moe.kernels.torch import memory

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    gradient_of(bank)
    assert bank not in memory._memory_of


def test_backward_twice_adds_up(bank):
    for _ in range(2):
        x = torch.ones(10, D)
        kernels.grouped_matmul(x, bank, SIZES).sum().backward()
    wanted = 2.0 * SIZES[:, None, None].expand(E, D, F)
    torch.testing.assert_close(bank.grad, wanted)


def test_the_memory_is_freed_with_the_weight(bank):
    from keras_moe.kernels.torch import memory

    weight = bank.detach().requires_grad_()
    gradient_of(weight)
    buffer = weakref.ref(memory._memory_of[weight].buffer)
    del weight
    gc.collect()
    assert buffer() is None


def test_settle_moves_a_bank_and_keeps_its_parameter():
    """NumPy requests large pages for arrays of at least 4 MB."""
    variable = keras.Variable(np.arange(1 << 20, dtype="float32"))
    parameter, before = variable.value, variable.value.data_ptr()
    kernels.settle(variable)
    assert variable.value is parameter
    assert parameter.data_ptr() != before
    assert parameter.data_ptr() % 64 == 0
    np.testing.assert_array_equal(parameter.detach(), np.arange(1 << 20))
    variable.assign(variable + 1.0)
    assert float(parameter.detach()[0]) == 1.0
    small = keras.Variable(np.zeros(8, "float32"))
    before = small.value.data_ptr()
    kernels.settle(small)
    assert small.value.data_ptr() == before
