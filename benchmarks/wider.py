"""What `tensorflow_tiles` gains by copies of the matrices, by rows an expert.

    python benchmarks/wider.py

An expert's network with wider copies over the same without, the median of the
rounds' ratios; pinned to one core, CPU time. The rule for the least number of
rows (`ROWS`) rests on it.
"""

import os

import measure

os.environ["KERAS_BACKEND"] = "tensorflow"
E = 16
SIZES = ((512, 512), (256, 1024), (512, 1024), (512, 2048), (768, 3072))
ROWS = (8, 16, 24, 32, 64, 128, 256, 512)


def network_of(hidden_dim, intermediate_dim, rows, least):
    """Returns the call of E gated experts on `rows` each; `least` is `ROWS`."""
    import keras
    import tensorflow as tf

    from keras_moe import kernels
    from keras_moe.kernels import tensorflow_loop, tensorflow_tiles

    D, F = hidden_dim, intermediate_dim
    tensorflow_loop._traced.cache_clear()  # else the first one is shared
    tensorflow_tiles.ROWS = least
    weights = kernels.FFNWeights(
        up_kernel=tf.random.normal((E, D, F)),
        down_kernel=tf.random.normal((E, F, D)),
        gate_kernel=tf.random.normal((E, D, F)),
    )
    x = tf.random.normal((E * rows, D))
    sizes = tf.constant([rows] * E)
    silu = keras.activations.silu

    @tf.function
    def run(x, weights):
        return tensorflow_tiles.grouped_ffn(x, weights, sizes, silu)

    run(x, weights)
    return lambda: run(x, weights).numpy()


def main():
    """Prints a line a pair of widths."""
    measure.pin()
    clock = measure.clock_of(pinned=True)
    print("| D | F |", " | ".join(f"{rows} rows" for rows in ROWS), "|")
    print("| --- " * (len(ROWS) + 2) + "|")
    for D, F in SIZES:
        gains = []
        for rows in ROWS:
            calls = {
                "without": network_of(D, F, rows, E * rows + 1),
                "wider": network_of(D, F, rows, 0),
            }
            times = measure.interleave(calls, "without", measure.QUICK, clock)
            gain = measure.ratio(times["wider"], times["without"]).median
            gains.append(f"{gain:.2f}")
        print(f"| {D} | {F} |", " | ".join(gains), "|", flush=True)


if __name__ == "__main__":
    main()
