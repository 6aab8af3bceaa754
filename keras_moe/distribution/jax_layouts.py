"""How a model lies on a mesh of devices, data x expert x model, on JAX.

D hidden_dim, F intermediate_dim, E experts.
"""

import math
import re
from collections.abc import Sequence

import keras

from keras_moe import checks
from keras_moe.checks import is_static
from keras_moe.distribution import jax_state
from keras_moe.layers.expert_parallel import BANK_AXES

AXES = ("data", "expert", "model")
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
    devices: Sequence | int | None = None,
    data: int | None = None,
    expert: int | None = None,
    model: int = 1,
) -> "ExpertParallel":
    """Returns a distribution that spreads experts over devices, for
    `keras.distribution.set_distribution`, before the model is built.

    The batch lies on all `data * expert` devices. Each group of `expert`
    devices holds every expert once, E / expert on each, and tokens go to the
    device of their expert by all-to-all and back (GShard, Lepikhin et al.
    2020, section 3.2); `data` such groups are replicas of each other. With
    `model` above 1 each expert's inner width F, and the heads of attention
    where their number can be divided, lie on that many devices (Shoeybi et
    al. 2019, "Megatron-LM", section 3). All else is whole on each device. One
    step computes what it computes on one device, losses included; capacity is
    for each device's tokens by themselves.

    Args:
        devices: names as of `keras.distribution.list_devices()`, or how many
            of these; None is all.
        data: groups; None is what is left, or 1 where `expert` is None, too.
        expert: devices that share the experts, a divisor of E; None is all
            that are left.
        model: devices that share one expert's F.

    Returns:
        A `keras.distribution.ModelParallel` whose mesh has the axes "data",
        "expert" and "model", those of more than one device. More layouts can
        be put into its `layout_map`.

    Raises:
        RuntimeError: on another backend, which would ignore it.
        ValueError: for sizes that do not fit the devices.
    """
    if keras.backend.backend() != "jax":
        raise RuntimeError(
            "`expert_parallel` needs JAX: keras.distribution does nothing on "
            f"{keras.backend.backend()!r}, and says nothing. Set KERAS_BACKEND"
            "=jax; or, on torch, use keras_moe.distribution.data_parallel("
            "shard_experts(model)); on tensorflow, the scope of a tf.distribute"
            " strategy."
        )
    names = _names_of(devices)
    sizes = _mesh_sizes(len(names), data, expert, model)
    # The program would sum over an axis of one device, to no end.
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
    """What `expert_parallel` returns."""

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
        """Returns the number of devices along mesh axes, 1 without any."""
        mesh = self.device_mesh
        sizes = dict(zip(mesh.axis_names, mesh.shape, strict=True))
        return math.prod(sizes.get(axis, 1) for axis in axes)

    @property
    def num_model_replicas(self) -> int:
        """Parts that a batch is cut into."""
        return self.devices_along(*BATCH_AXES)

    def get_data_layout(self, data_shape):
        """Returns the layout of a batch `(B, ...)`: B on all but "model".

        Raises:
            ValueError: where B, of this process, cannot be cut evenly.
        """
        parts = max(1, self.num_model_replicas // self.num_processes)
        if data_shape[0] % parts:
            raise ValueError(
                "The batch must be a multiple of the devices that it lies on. "
                f"Received: {data_shape[0]} examples in this process, for "
                f"{parts} devices. Choose another `batch_size`, and leave "
                "out what is over (`drop_remainder=True`)."
            )
        return BatchLayout(self.batch_axes, len(data_shape), self.device_mesh)

    def get_variable_layout(self, variable):
        """Returns the layout of a weight, by its path and its shape."""
        layout = super().get_variable_layout(variable)
        end = variable.path.rsplit("/", 1)[-1]
        if len(layout.axes) != len(variable.shape):
            return self._whole(variable, layout)
        axes = tuple(
            self._fitting(variable, axis, size, end)
            for axis, size in zip(layout.axes, variable.shape, strict=True)
        )
        return keras.distribution.TensorLayout(axes, self.device_mesh)

    def _whole(self, variable, layout):
        """The layout of what only has the name of a weight that is divided:
        Adafactor's means of its rows, or a `Dense` layer called "query"."""
        path, rank = variable.path, len(variable.shape)
        if any(re.fullmatch(f"(.*/)?{end}", path) for end in STACKED | HEADS):
            axes = (None,) * rank
            return keras.distribution.TensorLayout(axes, self.device_mesh)
        raise ValueError(
            "`layout_map` must give a weight as many axes as it has. Received: "
            f"{layout.axes} for {path!r}, of shape {tuple(variable.shape)}. "
            f"Give it {rank} axes, or choose a key that does not match it."
        )

    def _fitting(self, variable, axis, size, end):
        """The mesh axis on which a weight's axis lies, or None."""
        if axis is None or size == 1:  # the only expert is everywhere
            return None
        integers = "int" in str(variable.dtype)
        if axis == "model" and integers:  # rows are rounded whole
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
    """A first axis that lies on several axes of the mesh at once."""

    def __init__(self, batch_axes: tuple[str, ...], rank: int, mesh):
        super().__init__((batch_axes[0], *[None] * (rank - 1)), mesh)
        self.batch_axes = batch_axes

    @property
    def backend_layout(self):
        """The layout as JAX has it."""
        from jax.sharding import NamedSharding, PartitionSpec

        mesh = self.device_mesh.backend_mesh
        return NamedSharding(mesh, PartitionSpec(self.batch_axes))


def _names_of(devices):
    present = keras.distribution.list_devices()
    if devices is None:
        return present
    if is_static(devices) and not isinstance(devices, (list, tuple)):
        devices = checks.check_positive_int("devices", devices)
        if not 1 <= devices <= len(present):
            raise ValueError(
                "`devices` must be at most the number of devices. Received: "
                f"devices={devices}, where there are {len(present)}. Leave it "
                "out to take all."
            )
        return present[:devices]
    return list(devices)


def _mesh_sizes(count, data, expert, model):
    """Returns devices by axis, whose product is at most `count`."""
    given = {"data": data, "expert": expert, "model": model}
    for name, size in given.items():
        checks.check_optional_int(name, size)
    if data is None and expert is None:
        data = 1  # all that are left share the experts
    rest = math.prod(size for size in (data, expert, model) if size)
    free = data is None or expert is None
    asked = ", ".join(f"{k}={v}" for k, v in given.items() if v is not None)
    if rest > count:
        raise ValueError(
            "`data * expert * model` must be at most the number of devices. "
            f"Received: {asked}, {rest} in all, where there are {count}. "
            "Choose smaller ones; or, to try a layout on a CPU, set XLA_FLAGS="
            f"--xla_force_host_platform_device_count={rest} before Keras is "
            "imported."
        )
    if (count % rest) if free else (rest < count):
        raise ValueError(
            "`data * expert * model` must be the number of devices. Received: "
            f"{asked}, which does not share out {count} devices. Choose "
            f"divisors of {count}, or pass devices={rest} to leave the others "
            "idle."
        )
    sizes = (data or count // rest, expert or count // rest, model)
    return dict(zip(AXES, sizes, strict=True))
