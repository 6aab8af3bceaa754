"""Compare the balance of routers on a real task, with and without balancing.

    KERAS_BACKEND=torch python benchmarks/quality/balance.py
        [--data digits fashion_mnist] [--epochs N] [--seeds N] [--out FOLDER]
        [--fashion-mnist FOLDER] [--only NAME] [--tune] [--write README.md]

The script trains a small classifier of image patches with each method of
balancing, and with the same router without it. The imbalance of a block is E
times the share of its most loaded expert, over the held-out images in
evaluation: 1 is even, and E means that one expert has all tokens (E / K with K
experts per token). The script writes `balance-DATA.json`, `.md`, and `.png` to
FOLDER. `--write FILE` puts the tables between `<!-- balance-table -->` and
`<!-- /balance-table -->` in FILE.

E experts, K top_k.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import keras
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.quality import (
    balance_model,
    balance_report,
    balance_setups,
    image_patches,
)
from benchmarks.quality.balance_setups import SETTINGS
from benchmarks.shared import machine, marked_text

EPOCHS = {"digits": 15, "fashion_mnist": 5}
RESULTS = Path(__file__).resolve().parents[1] / "results"


def loads(router, data, training=False):
    """Return each block's largest load times E, and its experts per token."""
    num_experts = SETTINGS["num_experts"]
    counts = np.zeros((SETTINGS["num_blocks"], num_experts))
    for start in range(0, len(data.labels), SETTINGS["test_batch_size"]):
        part = slice(start, start + SETTINGS["test_batch_size"])
        found = router([data.tokens[part], data.ids[part]], training=training)
        for i, index in enumerate(keras.tree.flatten(found)):
            index = keras.ops.convert_to_numpy(index)
            index = index[index < num_experts]
            counts[i] += np.bincount(index, minlength=num_experts)
    pairs = np.maximum(counts.sum(axis=1), 1)
    largest = counts.max(axis=1) * num_experts / pairs
    return largest.tolist(), (pairs / data.ids.size).tolist()


def train(setup, data, seed, epochs):
    """Train once; return accuracy, imbalance, and seconds."""
    started = time.perf_counter()
    keras.utils.set_random_seed(seed)
    fitted, held_out = data
    model, router = balance_model.build(setup, fitted.tokens.shape[1:], seed)
    model.compile(
        keras.optimizers.Adam(SETTINGS["learning_rate"]),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(
        [fitted.tokens, fitted.ids],
        fitted.labels,
        batch_size=SETTINGS["batch_size"],
        epochs=epochs,
        verbose=0,
    )
    return {
        "seed": seed,
        **test(model, router, held_out, setup.router == "SinkhornRouter"),
        "seconds": round(time.perf_counter() - started, 2),
    }


def test(model, router, held_out, in_training_too):
    """Return accuracy and imbalance of a trained model on held-out images."""
    scores = model.evaluate(
        [held_out.tokens, held_out.ids],
        held_out.labels,
        batch_size=SETTINGS["test_batch_size"],
        verbose=0,
        return_dict=True,
    )
    largest, experts_per_token = loads(router, held_out)
    record = {
        "accuracy": scores["accuracy"],
        "imbalance": largest,
        "experts_per_token": experts_per_token,
    }
    if in_training_too:
        record["imbalance_training"] = loads(router, held_out, True)[0]
    return record


def compare(data, seeds, epochs, only):
    """Train with and without balancing; return one record per table row."""
    done, rows = {}, []

    def records(setup):
        if setup not in done:
            done[setup] = [train(setup, data, seed, epochs) for seed in seeds]
        return done[setup]

    for name, (balanced, unbalanced) in balance_setups.compared().items():
        if only not in name:
            continue
        row = {
            "name": name,
            "setups": [balanced._asdict(), unbalanced._asdict()],
            "with": records(balanced),
            "without": records(unbalanced),
        }
        rows.append(row)
        found = [
            max(balance_report.values(row[kind], "imbalance"))
            for kind in ("with", "without")
        ]
        print(
            f"{name}: worst {found[0]:.2f}, without {found[1]:.2f}", flush=True
        )
    return rows


def run(name, options):
    """Compare on one data set; write the results and return the table."""
    data = image_patches.load(name, options.fashion_mnist)
    if options.tune:
        data = image_patches.for_tuning(data)
    epochs = options.epochs or EPOCHS[name]
    result = {
        "data": name,
        "backend": keras.backend.backend(),
        "epochs": epochs,
        "seeds": options.seeds,
        "settings": SETTINGS,
        "train_images": len(data[0].labels),
        "test_images": len(data[1].labels),
        "machine": machine.describe(),
        "rows": compare(data, range(options.seeds), epochs, options.only),
    }
    path = options.out / f"balance-{name}"
    table = balance_report.table(result)
    path.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    path.with_suffix(".md").write_text(table + "\n")
    balance_report.draw(result, path.with_suffix(".png"))
    return table


def parse():
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", choices=image_patches.NAMES)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument(
        "--fashion-mnist", type=Path, default=image_patches.FASHION_MNIST
    )
    parser.add_argument("--only", default="", help="a part of a row's name")
    parser.add_argument(
        "--tune", action="store_true", help="hold training images out instead"
    )
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    if not options.data:
        found = image_patches.is_installed(options.fashion_mnist)
        options.data = ["fashion_mnist" if found else "digits"]
    return options


def main():
    """Compare, and print the tables; with `--write`, write them to a file."""
    options = parse()
    options.out.mkdir(parents=True, exist_ok=True)
    tables = []
    for name in options.data:
        tables.append(run(name, options))
        print(tables[-1], flush=True)
    if options.write:
        text = "\n\n".join(tables)
        marked_text.replace(options.write, "balance-table", text)


if __name__ == "__main__":
    main()
