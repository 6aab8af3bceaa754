"""Compare the plan with XLA's figures for layouts on eight virtual devices.

Run `python planned_jax.py FOLDER`.
"""

import json
import os
import pathlib
import sys

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import keras
from devices_jax import LAYOUTS
from programs_jax import collectives

import keras_moe
from keras_moe.distribution import PlanConfig, estimate, expert_parallel

T, D, F, E = 4096, 64, 128, 8
CASES = [("8x1", None, 1), ("2x4", None, 1), ("1x8", 1.0, 2), ("2x2x2", 1.0, 1)]


def measure(layout, capacity_factor, blocks):
    """Return the planned and the compiled bytes and collectives of a step."""
    distribution = expert_parallel(**LAYOUTS[layout])
    with distribution.scope():
        inputs = x = keras.Input((D,))
        for _ in range(blocks):
            block = keras_moe.MoEBlock(E, F, capacity_factor=capacity_factor)
            x = x + block(x)
        model = keras.Model(inputs, x)
        placed = distribution.get_data_layout((T, D)).backend_layout
        x = jax.ShapeDtypeStruct((T, D), "float32", sharding=placed)

        def loss(trainable, others, x):
            y, _, losses = model.stateless_call(
                trainable, others, x, training=True, return_losses=True
            )
            return (y**2).sum() + sum(losses)

        program = jax.jit(jax.grad(loss, (0, 2))).lower(
            [v.value for v in model.trainable_variables],
            [v.value for v in model.non_trainable_variables],
            x,
        )
        compiled = program.compile()
    sizes = {
        a: distribution.devices_along(a) for a in ("data", "expert", "model")
    }
    # The residual stream of each block, and its gradient.
    config = PlanConfig.of_model(model, T, dense_activations=2 * D * blocks)
    planned = estimate(config, **sizes)
    found = collectives(compiled.as_text())

    def elements(wanted):
        return [
            size
            for name, kind, size in found
            if (name, kind) == (wanted, "f32")
        ]

    return {
        "sizes": sizes,
        "activations": [
            planned.activation_bytes,
            compiled.memory_analysis().temp_size_in_bytes,
        ],
        "all to all": [
            planned.all_to_all_bytes,
            [
                size
                for name, kind, size in found
                if (name, kind) == ("all-to-all", "f32")
            ],
        ],
        "all reduce": [
            planned.all_reduce_bytes,
            [
                size
                for name, kind, size in found
                if (name, kind) == ("all-reduce", "f32")
            ],
        ],
    }


def main(folder):
    found = {case[0]: measure(*case) for case in CASES}
    (pathlib.Path(folder) / "planned.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
