"""Quantised experts beside float32: bytes, forward time, memory, accuracy.

    KERAS_BACKEND=torch python benchmarks/quantized.py [--quick] [--out FILE]

Time is a forward pass of one MoEBlock at the shape M, by turns with the same
block in float32. Memory is the most that is resident during a warm forward
pass of a model from its file, less what was before it was loaded, each in a
process of its own.
Accuracy is of `examples/quickstart.py`'s digits model over three seeds, each
model trained once and quantised from its file.
"""

import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean

import options
from shapes import SHAPES, Shape

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

WAYS = ("float32", "int8", "int8 weights", "int4", "int4 per channel")
SEEDS = (0, 1, 2)
ITEM_BYTES = {"float32": 4, "int8": 1, "uint8": 1}


def config_of(way):
    """Returns the Keras config that a way of quantising stands for."""
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
    """Returns our block with the problem's weights, quantised."""
    import contestants

    one = contestants.ours(problem)[0]._replace(name=way)
    if way != "float32":
        model_of(one).quantize(config=config_of(way))
    return one


def model_of(one):
    """Returns a model of a contestant's block alone."""
    import keras

    inputs = keras.Input(one.problem.x.shape[1:])
    return keras.Model(inputs, one.layer(inputs))


def bytes_of(experts):
    """Returns the bytes of a bank's weights, scales and biases included."""
    return sum(
        math.prod(w.shape) * ITEM_BYTES[w.dtype] for w in experts.weights
    )


def measure_time(shape, quick):
    """Returns bytes and times of every way, to float32."""
    import measure
    from problem import draw

    problem = draw(SHAPES[shape])
    cast = {way: contestant(way, problem) for way in WAYS}
    calls = {way: one.call("forward") for way, one in cast.items()}
    outputs = {way: call() for way, call in calls.items()}
    limits = measure.QUICK if quick else measure.FULL
    times = measure.interleave(calls, "float32", limits)
    wanted = outputs["float32"]
    size = bytes_of(cast["float32"].layer.experts)
    records = {}
    for way in WAYS:
        error = ((outputs[way] - wanted) ** 2).mean() / (wanted**2).mean()
        records[way] = {
            "bytes": bytes_of(cast[way].layer.experts) / size,
            "error": float(error) ** 0.5,
            "time": measure.ratio(times[way], times["float32"])._asdict(),
        }
    return records


def save(way, shape, path):
    """Writes a model of one block, quantised; in a child."""
    from problem import draw

    model_of(contestant(way, draw(SHAPES[shape]))).save(path)
    return {}


def measure_memory(way, shape, path):
    """Returns the bytes of a forward pass's peak; in a child.

    The model comes from its file, so that its floats were never here.
    """
    import keras
    import measure
    from calls import call_of
    from problem import draw

    tiny = contestant(way, draw(Shape(T=8, D=16, F=16, E=4, K=2)))
    tiny.call("forward")()  # what the backend loads and keeps, once
    x = draw(SHAPES[shape]).x
    before = measure.resident()
    model = keras.saving.load_model(path)
    call = call_of("forward", model.layers[-1], x, x)
    call()
    call()
    measure.resident()
    return {"peak": measure.peak_resident(call) - before}


def measure_digits(epochs):
    """Returns accuracies on the held-out digits: a list for each way."""
    import keras
    import quickstart_model

    train_data, test_data = quickstart_model.load_data()
    found = {way: [] for way in WAYS}
    for seed in SEEDS:
        model = quickstart_model.train("moe", train_data, epochs, seed)
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
    """Runs one of `CHILDREN` in a fresh process."""
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
    """Returns the Markdown table of all figures."""
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
    """Prints the table and writes the records."""
    parser = options.parser_of(__doc__)
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
        options.write([{"shape": shape, **records, "digits": digits}], args.out)


if __name__ == "__main__":
    main()
