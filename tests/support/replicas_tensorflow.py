"""Run two replicas of a MirroredStrategy on the CPU.

Run `python replicas_tensorflow.py FOLDER`.
"""

import pathlib
import sys

import numpy as np
import tensorflow as tf

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(
    cpu, [tf.config.LogicalDeviceConfiguration()] * 2
)

import replica_step  # noqa: E402


def main(folder):
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        found = replica_step.routers()

    def of_each(values):
        return strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(
                values(context.replica_id_in_sync_group)
            )
        )

    def batch(even):
        return of_each(lambda replica: replica_step.inputs(replica, even))

    @tf.function
    def run(*arguments):
        def step(x_even, x_uneven, tokens, mask):
            losses = replica_step.step(found, x_even, x_uneven)
            losses |= replica_step.padded_losses(tokens, mask)
            return losses | replica_step.own_losses(found, tokens, mask)

        return strategy.run(step, arguments)

    tokens, mask = (
        of_each(lambda replica, part=part: replica_step.padded(replica)[part])
        for part in range(2)
    )
    losses = run(batch(True), batch(False), tokens, mask)
    local = strategy.experimental_local_results
    for replica in range(2):
        arrays = {n: np.asarray(local(v)[replica]) for n, v in losses.items()}
        for name in ("even", "uneven"):
            weight = found[name].expert_bias_weight.value
            arrays[name] = np.asarray(local(weight)[replica])
        np.savez(pathlib.Path(folder) / f"{replica}.npz", **arrays)


if __name__ == "__main__":
    main(sys.argv[1])
