"""Export from every backend to every format; check and time the artifacts.

    python benchmarks/artifacts/exported_formats.py [--write README.md]

On each backend, a model of one block (32 experts, top-1) is trained for a few
steps and exported to the five formats, and each artifact is verified. The
runtime of each format then times the artifacts of the three backends, in turns
with the all-experts form of the same model, at 1 token and at 512. `--write
FILE` puts the table between the markers `artifacts-table` in FILE.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.shared import marked_text, timing

BACKENDS = ("jax", "tensorflow", "torch")
FORMATS = ("tf_saved_model", "litert", "onnx", "openvino", "torch")
FULL = {"num_experts": 32, "hidden_dim": 256, "intermediate_dim": 1024}
QUICK = {"num_experts": 4, "hidden_dim": 16, "intermediate_dim": 32}
TOKENS = (512, 1)
RUNTIMES = Path(__file__).resolve().parents[2] / "keras_moe/export/runtimes.py"
HEAD = (
    "| trained on | format | works | largest difference | MB | time at 512 "
    "tokens / all experts | at 1 token / all experts |\n"
    "|---|---|---|---|---|---|---|"
)


def make(folder, quick):
    """Train and export under the backend that KERAS_BACKEND names."""
    import keras

    from benchmarks.artifacts import all_experts_layer
    from keras_moe.export import export

    keras.utils.set_random_seed(0)
    size = QUICK if quick else FULL
    model, dense = all_experts_layer.models(**size)
    model.compile("adam", "mse")
    x = np.random.default_rng(0).normal(size=(16, 32, size["hidden_dim"]))
    model.fit(x, np.roll(x, 1, axis=-1), batch_size=8, verbose=0)
    backend = keras.backend.backend()
    cells = {}
    for format in FORMATS:
        try:
            made = export(model, Path(folder, f"{backend}-{format}"), format)
            difference = made["verified"]["largest_difference"]
            cells[format] = {"difference": difference, "bytes": made["bytes"]}
        except (RuntimeError, ValueError) as error:
            cells[format] = {"failed": str(error)}
        if backend == "tensorflow":
            export(dense, Path(folder, f"all-{format}"), format)
    Path(folder, f"{backend}.json").write_text(json.dumps(cells))


def clock(folder, format, quick):
    """Time the artifacts of one format, in a process without Keras."""
    runtimes = load_by_path()
    runs = {}
    for path in sorted(Path(folder).glob(f"*-{format}")):
        manifest = json.loads((path / "moe.json").read_text())
        artifact = str(path / manifest["file"])
        runs[path.name.split("-")[0]] = runtimes.load(format, artifact)
    limits = timing.QUICK if quick else timing.FULL
    width = manifest["inputs"][0]["shape"][-1]
    ratios = {}
    for tokens in TOKENS:
        x = np.random.default_rng(1).normal(size=(1, tokens, width))
        inputs = {"tokens": x.astype("float32")}
        calls = {name: bind(run, inputs) for name, run in runs.items()}
        for call in calls.values():
            call()
        times = timing.interleave(calls, "all", limits)
        for name in BACKENDS:
            if name in times:
                pairs = zip(times[name], times["all"], strict=False)
                ratios[f"{name}-{tokens}"] = median(a / b for a, b in pairs)
    Path(folder, f"times-{format}.json").write_text(json.dumps(ratios))


def bind(run, inputs):
    return lambda: run(inputs)


def load_by_path():
    """Return `RUNTIMES` as a module, without importing Keras."""
    import importlib.util

    path = (
        Path(__file__).resolve().parents[2]
        / "keras_moe"
        / "export"
        / "runtimes.py"
    )
    spec = importlib.util.spec_from_file_location("runtimes", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def table(folder):
    """Return the table of the results that the other processes wrote."""
    lines = [HEAD]
    for backend in BACKENDS:
        cells = json.loads(Path(folder, f"{backend}.json").read_text())
        for format, cell in cells.items():
            if "failed" in cell:
                reason = cell["failed"].splitlines()[0]
                lines.append(f"| {backend} | {format} | {reason} | | | | |")
                continue
            times = json.loads(Path(folder, f"times-{format}.json").read_text())
            ratios = [times[f"{backend}-{tokens}"] for tokens in TOKENS]
            lines.append(
                f"| {backend} | {format} | yes | {cell['difference']:.1e} | "
                f"{cell['bytes'] / 1e6:.1f} | {ratios[0]:.2f} | "
                f"{ratios[1]:.2f} |"
            )
    return "\n".join(lines)


def start(backend, *arguments):
    subprocess.run(
        [sys.executable, __file__, *arguments],
        env={**os.environ, "KERAS_BACKEND": backend},
        check=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--write", type=Path, help="file with the markers")
    parser.add_argument("--make", help=argparse.SUPPRESS)
    parser.add_argument("--clock", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make:
        return make(options.make, options.quick)
    if options.clock:
        return clock(*options.clock, options.quick)
    quick = ["--quick"] if options.quick else []
    with tempfile.TemporaryDirectory() as folder:
        for backend in BACKENDS:
            start(backend, "--make", folder, *quick)
        for format in FORMATS:
            start("numpy", "--clock", folder, format, *quick)
        text = table(folder)
    print(text)
    if options.write:
        marked_text.replace(options.write, "artifacts-table", text)


if __name__ == "__main__":
    main()
