"""Choose the devices of a mesh, and their number along each axis."""

import math
from typing import Any

import keras

from keras_moe import checks
from keras_moe.checks import is_static

AXES = ("data", "expert", "model")


def device_names(devices: Any) -> list[Any]:
    """Return the names of devices.

    Args:
        devices: List of names, number of devices, or `None` for all devices.
    """
    present: list[Any] = keras.distribution.list_devices()
    if devices is None:
        return present
    if is_static(devices) and not isinstance(devices, (list, tuple)):
        devices = checks.check_positive_int("devices", devices)
        if devices > len(present):
            raise ValueError(
                "`devices` must be at most the number of devices. Received: "
                f"devices={devices}, but there are {len(present)}. Leave it "
                "out to use all."
            )
        return present[:devices]
    return list(devices)


def mesh_sizes(
    count: int, data: int | None, expert: int | None, model: int
) -> dict[str, int]:
    """Return the number of devices along each axis, at most `count` in all."""
    given = {"data": data, "expert": expert, "model": model}
    for name, size in given.items():
        checks.check_optional_int(name, size)
    if data is None and expert is None:
        data = 1  # all remaining devices share the experts
    rest = math.prod(size for size in (data, expert, model) if size)
    free = data is None or expert is None
    asked = ", ".join(f"{k}={v}" for k, v in given.items() if v is not None)
    if rest > count:
        raise ValueError(
            "`data * expert * model` must be at most the number of devices. "
            f"Received: {asked}, {rest} in all, but there are {count}. Choose "
            "smaller sizes; or, to try a layout on a CPU, set XLA_FLAGS="
            f"--xla_force_host_platform_device_count={rest} before you import "
            "Keras."
        )
    if (count % rest) if free else (rest < count):
        raise ValueError(
            "`data * expert * model` must be the number of devices. Received: "
            f"{asked}, which does not divide {count} devices evenly. Choose "
            f"divisors of {count}, or pass devices={rest} to leave the others "
            "idle."
        )
    sizes = (data or count // rest, expert or count // rest, model)
    return dict(zip(AXES, sizes, strict=True))
