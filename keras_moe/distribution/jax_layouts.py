"""Lay a model out on a mesh of devices, data x expert x model, on JAX.

D hidden_dim, F intermediate_dim, E experts.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import keras

from keras_moe import checks
from keras_moe.distribution import jax_state
from keras_moe.distribution.mesh_sizes import AXES, device_names, mesh_sizes
from keras_moe.layers.expert_parallel import BANK_AXES

BATCH_AXES = AXES[:2]
# The mesh axes of a weight, by the end of its path.
STACKED = {
    name: tuple("model" if axis == "inner" else axis for axis in axes)
    for name, axes in BANK_AXES.items()
} | {"(up|gate|down)_scale": ("expert", None, None)}
HEADS = {
    "(query|key|value)/kernel": (None, "model", None),
    "(query|key|value)/bias": ("model", None),
    "attention_output/kernel": ("model", None, None),
}


def expert_parallel(
    devices: Sequence[Any] | int | None = None,
    data: int | None = None,
    expert: int | None = None,
    model: int = 1,
) -> "ExpertParallel":
    """Return a distribution that spreads experts over devices, on JAX.

    Pass it to `keras.distribution.set_distribution` before the model is built.

    The batch is divided over all `data * expert` devices. Each group of
    `expert` devices holds every expert once, E / expert on each device, and an
    all-to-all sends tokens to the device of their expert and back. `data` such
    groups are replicas of each other. If `model` is above 1, the inner width F
    of each expert is divided over that many devices, as are the heads of
    attention if their number is divisible. Each device holds all other weights.
    A step computes the same as on one device, including losses, but capacity
    is applied to the tokens of each device separately.

    Reference: GShard (Lepikhin et al. 2020, section 3.2) for experts;
    "Megatron-LM" (Shoeybi et al. 2019, section 3) for `model`.

    Args:
        devices: List of names from `keras.distribution.list_devices()`, or
            int, how many of them to use. `None` (the default) uses all.
        data: Int, number of groups. `None` (the default) uses the remaining
            devices, or is 1 if `expert` is `None`, too.
        expert: Int, number of devices that share the experts, a divisor of E.
            `None` (the default) uses all remaining devices.
        model: Int, number of devices that share the F of one expert.
            Default: 1.

    Returns:
        An `ExpertParallel` whose mesh has the axes "data", "expert", and
        "model", without axes of one device. You can add layouts to its
        `layout_map`.

    Raises:
        RuntimeError: If the backend is not JAX.
        ValueError: If the sizes do not fit the number of devices.

    Example:

    ```python
    layout = keras_moe.distribution.expert_parallel(expert=4)
    keras.distribution.set_distribution(layout)
    model = make_model()  # its experts are spread over 4 devices
    ```
    """
    if keras.backend.backend() != "jax":
        raise RuntimeError(
            "`expert_parallel` needs JAX, because other backends ignore "
            f"keras.distribution. Received: {keras.backend.backend()!r}. Set "
            "KERAS_BACKEND=jax; or, on torch, use keras_moe.distribution."
            "data_parallel(shard_experts(model)); on tensorflow, the scope of "
            "a tf.distribute strategy."
        )
    names = device_names(devices)
    sizes = mesh_sizes(len(names), data, expert, model)
    # Summing over an axis of one device would be overhead.
    shared = {axis: size for axis, size in sizes.items() if size > 1}
    if not shared.keys() & set(BATCH_AXES):
        shared = {"data": 1, **shared}
    mesh = keras.distribution.DeviceMesh(
        tuple(shared.values()), list(shared), names[: math.prod(sizes.values())]
    )
    layouts = keras.distribution.LayoutMap(mesh)
    for end, axes in (STACKED | HEADS).items():
        present = tuple(axis if axis in shared else None for axis in axes)
        layouts[f"(.*/)?{end}"] = present
    return ExpertParallel(layouts)


class ExpertParallel(keras.distribution.ModelParallel):
    """Spread experts over devices; `expert_parallel` returns it.

    Args:
        layout_map: `keras.distribution.LayoutMap` from weight paths to mesh
            axes.

    Example:

    ```python
    layout = keras_moe.distribution.expert_parallel()
    layout.layout_map["head/kernel"] = (None, None)
    keras.distribution.set_distribution(layout)
    ```
    """

    def __init__(self, layout_map: keras.distribution.LayoutMap):
        checks.check_is_a(
            "layout_map",
            layout_map,
            keras.distribution.LayoutMap,
            "a keras.distribution.LayoutMap",
            "Call keras_moe.distribution.expert_parallel().",
        )
        names = layout_map.device_mesh.axis_names
        self.batch_axes = tuple(a for a in BATCH_AXES if a in names)
        self.layout_map = layout_map
        super().__init__(
            layout_map=layout_map, batch_dim_name=self.batch_axes[0]
        )
        jax_state.install()

    def devices_along(self, *axes: str) -> int:
        """Return the number of devices along mesh axes; 1 without axes."""
        mesh = self.device_mesh
        sizes = dict(zip(mesh.axis_names, mesh.shape, strict=True))
        return math.prod(sizes.get(axis, 1) for axis in axes)

    @property
    def num_model_replicas(self) -> int:
        """Number of parts that a batch is divided into."""
        return self.devices_along(*BATCH_AXES)

    def get_data_layout(self, data_shape: Sequence[int]) -> "BatchLayout":
        """Return the layout of a batch `(B, ...)`: B on all axes but "model".

        Raises:
            ValueError: If the B examples of this process cannot be divided
                evenly over its devices.
        """
        parts = max(1, self.num_model_replicas // self.num_processes)
        if data_shape[0] % parts:
            raise ValueError(
                "The batch must be a multiple of the devices that it lies on. "
                f"Received: {data_shape[0]} examples in this process, for "
                f"{parts} devices. Choose another `batch_size`, and drop the "
                "remainder (`drop_remainder=True`)."
            )
        return BatchLayout(self.batch_axes, len(data_shape), self.device_mesh)

    def get_variable_layout(
        self, variable: keras.Variable
    ) -> keras.distribution.TensorLayout:
        """Return the layout of a weight, from its path and its shape."""
        layout = super().get_variable_layout(variable)
        end = variable.path.rsplit("/", 1)[-1]
        if len(layout.axes) != len(variable.shape):
            return self._whole(variable, layout)
        axes = tuple(
            self._fitting(variable, axis, size, end)
            for axis, size in zip(layout.axes, variable.shape, strict=True)
        )
        return keras.distribution.TensorLayout(axes, self.device_mesh)

    def _whole(
        self,
        variable: keras.Variable,
        layout: keras.distribution.TensorLayout,
    ) -> keras.distribution.TensorLayout:
        """Return an undivided layout for a variable of unexpected rank.

        It only has the name of a divided weight: Adafactor's means of that
        weight's rows, or a `Dense` layer named "query".
        """
        path, rank = variable.path, len(variable.shape)
        if any(re.fullmatch(f"(.*/)?{end}", path) for end in STACKED | HEADS):
            axes = (None,) * rank
            return keras.distribution.TensorLayout(axes, self.device_mesh)
        raise ValueError(
            "`layout_map` must have one entry per axis of a weight. Received: "
            f"{layout.axes} for {path!r}, of shape {tuple(variable.shape)}. "
            f"Pass {rank} axes, or choose a key that does not match the path."
        )

    def _fitting(
        self, variable: keras.Variable, axis: str | None, size: int, end: str
    ) -> str | None:
        """Return the mesh axis of a weight's axis of this size, or `None`."""
        if axis is None or size == 1:  # each device holds the only expert
            return None
        integers = "int" in str(variable.dtype)
        if axis == "model" and integers:  # a quantized row has one scale
            return None
        devices = self.devices_along(axis)
        if size % devices == 0:
            return axis
        if axis == "model" and end in ("kernel", "bias"):  # heads
            return None
        what = "num_experts" if axis == "expert" else "intermediate_dim"
        raise ValueError(
            f"`{what}` must be a multiple of the {devices} devices along the "
            f"mesh axis {axis!r}. Received: {what}={size} in "
            f"{variable.path!r}, of shape {tuple(variable.shape)}. Choose "
            f"expert_parallel({axis}=...) among the divisors of {size}."
        )


class BatchLayout(keras.distribution.TensorLayout):
    """Divide the first axis of a batch over several axes of the mesh.

    Args:
        batch_axes: Names of the mesh axes.
        rank: Int, rank of the batch.
        mesh: `keras.distribution.DeviceMesh`.
    """

    def __init__(
        self,
        batch_axes: tuple[str, ...],
        rank: int,
        mesh: keras.distribution.DeviceMesh,
    ):
        super().__init__((batch_axes[0], *[None] * (rank - 1)), mesh)
        self.batch_axes = batch_axes

    @property
    def backend_layout(self) -> Any:
        """The layout as a `jax.sharding.NamedSharding`."""
        from jax import sharding

        mesh = self.device_mesh.backend_mesh
        spec: Any = sharding.PartitionSpec  # without annotations
        return sharding.NamedSharding(mesh, spec(self.batch_axes))
