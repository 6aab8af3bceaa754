"""Time a generated token at two positions, with and without a cache.

    KERAS_BACKEND=jax python benchmarks/speed/generation.py --pinned

The script times one decoding step of a `MoELanguageModel` whose cache has
`LENGTH` positions, at two of them, and one call on all `LENGTH` tokens, which
is the cost of a token without a cache. It does the same for the dense twin of
equal active FLOPs, and measures the tokens per second of a whole `generate`.

B sequences, S tokens of a call.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.shared import command_line, timing

LENGTH = 512
EARLY, LATE = 64, 448
SIZES = {
    "vocabulary_size": 1024,
    "max_length": LENGTH,
    "num_layers": 4,
    "hidden_dim": 256,
    "num_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_dim": 256,
    "num_experts": 8,
    "top_k": 2,
    "gated": True,
}
TINY = {"num_layers": 1, "hidden_dim": 16, "intermediate_dim": 8}


def calls_of(model, batch_size):
    """Return callables without arguments that compute a token."""
    import numpy as np
    from keras import ops

    from keras_moe import kernels

    length = model.max_length
    ids = np.full((batch_size, length), 3, "int32")
    cache = model.empty_cache(batch_size, length)
    step = kernels.compiled(model.step, model.variables)
    whole = kernels.compiled(model, model.variables)

    def at(position):
        index = ops.convert_to_tensor(position, dtype="int32")
        last = ops.convert_to_tensor(ids[:, :1])

        def call():
            logits, _ = step(last, cache, index)
            ops.convert_to_numpy(logits)

        return call

    def without():
        ops.convert_to_numpy(whole(ops.convert_to_tensor(ids)))

    return {
        f"step at {EARLY * length // LENGTH}": at(EARLY * length // LENGTH),
        f"step at {LATE * length // LENGTH}": at(LATE * length // LENGTH),
        "no cache": without,
    }


def tokens_per_second(model, batch_size, clock):
    """Return the tokens per second of a whole `generate`, after compilation."""
    import numpy as np

    prompt = np.full((batch_size, 1), 3, "int32")
    model.generate(prompt)
    start = clock()
    model.generate(prompt)
    seconds = clock() - start
    return batch_size * (model.max_length - 1) / seconds


def records_of(kind, sizes, batch_size, limits, clock):
    """Return one record per callable of the MoE model or its dense twin."""
    from keras_moe.models import MoELanguageModel

    if kind == "dense":
        sizes = {**sizes, "num_experts": None}
    model = MoELanguageModel(**sizes)
    calls = calls_of(model, batch_size)
    times = timing.interleave(calls, next(iter(calls)), limits, clock)
    early = next(iter(times.values()))
    common = {"part": "generation", "model": kind, "batch_size": batch_size}
    records = [
        {
            **common,
            "name": name,
            "milliseconds": 1e3 * sorted(found)[len(found) // 2],
            "to_early": list(timing.ratio(found, early[: len(found)])),
        }
        for name, found in times.items()
    ]
    rate = tokens_per_second(model, batch_size, clock)
    records.append({**common, "name": "generate", "tokens_per_second": rate})
    for record in records:
        print(record, file=sys.stderr)
    return records


def main():
    """Write the records of both models at two batch sizes."""
    parser = command_line.parser_of(__doc__)
    args = parser.parse_args()
    sizes = SIZES | (TINY | {"max_length": 64} if args.quick else {})
    limits = timing.QUICK if args.quick else timing.FULL
    clock = timing.clock_of(args.pinned)
    records = []
    for batch_size in (1, 8):
        for kind in ("moe", "dense"):
            records += records_of(kind, sizes, batch_size, limits, clock)
    command_line.write(records, args.out)


if __name__ == "__main__":
    main()
