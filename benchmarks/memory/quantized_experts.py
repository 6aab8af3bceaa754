"""Compare quantized experts with float32: bytes, time, memory, accuracy.

    KERAS_BACKEND=torch python benchmarks/memory/quantized_experts.py

The time is that of a forward pass of one `MoEBlock` at the shape M, in turns
with the same block in float32. The memory is the largest resident memory during
a warm forward pass of a model loaded from its file, minus the resident memory
before; each model has a separate process. The accuracy is that of the digits
model of `examples/quickstart.py` over three seeds. Each model is trained once
and quantized from its file. `--quick` runs a small form, and `--out FILE`
writes the records.
"""

import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.memory.peak import peak_resident, resident
from benchmarks.shared import command_line
from benchmarks.shared.shapes import SHAPES, Shape

WAYS = ("float32", "int8", "int8 weights", "int4", "int4 per channel")
SEEDS = (0, 1, 2)
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
ITEM_BYTES = {"float32": 4, "int8": 1, "uint8": 1}


def config_of(way):
    """Return the Keras config of one entry of `WAYS`."""
    from keras import quantizers

    return {
        "int8": quantizers.Int8QuantizationConfig,
        "int8 weights": lambda: quantizers.Int8QuantizationConfig(
            activation_quantizer=None
        ),
        "int4": quantizers.Int4QuantizationConfig,
        "int4 per channel": lambda: quantizers.Int4QuantizationConfig(
            block_size=None
        ),
    }[way]()


def contestant(way, problem):
    """Return keras_moe's block with the problem's weights, quantized."""
    from benchmarks.shared import contestants

    one = contestants.ours(problem)[0]._replace(name=way)
    if way != "float32":
        model_of(one).quantize(config=config_of(way))
    return one


def model_of(one):
    """Return a model of a contestant's block alone."""
    import keras

    inputs = keras.Input(one.problem.x.shape[1:])
    return keras.Model(inputs, one.layer(inputs))


def bytes_of(experts):
    """Return the bytes of a bank's weights, scales and biases included."""
    return sum(
        math.prod(w.shape) * ITEM_BYTES[w.dtype] for w in experts.weights
    )


def measure_time(shape, quick):
    """Return the bytes and times of each of `WAYS`, relative to float32."""
    from benchmarks.shared import timing
    from benchmarks.shared.random_problem import draw

    problem = draw(SHAPES[shape])
    cast = {way: contestant(way, problem) for way in WAYS}
    calls = {way: one.call("forward") for way, one in cast.items()}
    outputs = {way: call() for way, call in calls.items()}
    limits = timing.QUICK if quick else timing.FULL
    times = timing.interleave(calls, "float32", limits)
    wanted = outputs["float32"]
    size = bytes_of(cast["float32"].layer.experts)
    records = {}
    for way in WAYS:
        error = ((outputs[way] - wanted) ** 2).mean() / (wanted**2).mean()
        records[way] = {
            "bytes": bytes_of(cast[way].layer.experts) / size,
            "error": float(error) ** 0.5,
            "time": timing.ratio(times[way], times["float32"])._asdict(),
        }
    return records


def save(way, shape, path):
    """Write a quantized model of one block, in a child process."""
    from benchmarks.shared.random_problem import draw

    model_of(contestant(way, draw(SHAPES[shape]))).save(path)
    return {}


def measure_memory(way, shape, path):
    """Return the peak bytes of a forward pass, in a child process.

    The model is loaded from its file, so that this process never holds the
    float32 weights.
    """
    import keras

    from benchmarks.shared.random_problem import draw
    from benchmarks.shared.timed_calls import call_of

    tiny = contestant(way, draw(Shape(T=8, D=16, F=16, E=4, K=2)))
    tiny.call("forward")()  # allocate what the backend keeps
    x = draw(SHAPES[shape]).x
    before = resident()
    model = keras.saving.load_model(path)
    call = call_of("forward", model.layers[-1], x, x)
    call()
    call()
    resident()
    return {"peak": peak_resident(call) - before}


def measure_digits(epochs):
    """Return the accuracies on the held-out digits, a list per way."""
    import keras

    sys.path.insert(0, str(EXAMPLES))
    from shared import digits

    train_data, test_data = digits.load_data()
    found = {way: [] for way in WAYS}
    for seed in SEEDS:
        model = digits.train("moe", train_data, epochs, seed)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "digits.keras"
            model.save(path)
            for way in WAYS:
                model = keras.saving.load_model(path)
                if way != "float32":
                    model.quantize(config=config_of(way))
                results = model.evaluate(*test_data, return_dict=True)
                found[way].append(float(results["accuracy"]))
    return found


def child(part, way, shape, path):
    """Run one of `CHILDREN` in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, "--child", part]
        + ["--way", way, "--only", shape, "--path", path],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.strip().splitlines()[-1])


CHILDREN = {"save": save, "memory": measure_memory}


def table(records, digits):
    """Return the Markdown table of all figures."""
    lines = [
        "| | experts' bytes | forward | peak memory | error of outputs "
        "| digits, mean |",
        "|---|---|---|---|---|---|",
    ]
    peak = records["float32"]["peak"]
    for way, r in records.items():
        accuracy = f"{mean(digits[way]):.4f}" if digits else "-"
        lines.append(
            f"| {way} | {r['bytes']:.3f} | {r['time']['median']:.2f} "
            f"| {r['peak'] / peak:.2f} | {r['error']:.4f} | {accuracy} |"
        )
    return "\n".join(lines)


def main():
    """Print the table; with `--out`, write the records."""
    parser = command_line.parser_of(__doc__)
    parser.add_argument("--child", choices=CHILDREN)
    parser.add_argument("--way", choices=WAYS)
    parser.add_argument("--path")
    parser.add_argument("--no-digits", action="store_true")
    args = parser.parse_args()
    shape = args.only or ("S" if args.quick else "M")
    if args.child:
        print(json.dumps(CHILDREN[args.child](args.way, shape, args.path)))
        return
    records = measure_time(shape, args.quick)
    for way in WAYS:
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/model.keras"
            child("save", way, shape, path)
            records[way] |= child("memory", way, shape, path)
    digits = {}
    if not args.no_digits:
        digits = measure_digits(1 if args.quick else 12)
    print(table(records, digits))
    if args.out:
        command_line.write(
            [{"shape": shape, **records, "digits": digits}], args.out
        )


if __name__ == "__main__":
    main()
