"""Make the table and the figure of `balance.py`."""

from statistics import mean

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

LIMIT = 1.5
HEAD = (
    "| router | experts per token | imbalance, mean (worst) | at most "
    f"{LIMIT} | without balancing, mean (worst) | accuracy | without |\n"
    "|---|---|---|---|---|---|---|"
)
NAMES = {"digits": "scikit-learn's digits", "fashion_mnist": "Fashion-MNIST"}


def values(records, field):
    """Return a field of all blocks and seeds, as one list."""
    return [value for record in records for value in record[field]]


def lines_of(result):
    """Return `(name, with, without, row)` of each line of the table.

    `with` and `without` are the imbalances with and without balancing. A router
    that balances only in training also has a line for training.
    """
    lines = []
    for row in result["rows"]:
        without = values(row["without"], "imbalance")
        found = values(row["with"], "imbalance")
        if "imbalance_training" not in row["with"][0]:
            lines.append((row["name"], found, without, row))
            continue
        planned = values(row["with"], "imbalance_training")
        lines.append((f"{row['name']}, in training", planned, without, row))
        lines.append((f"{row['name']}, in evaluation", found, without, row))
    return lines


def table(result):
    """Return the Markdown table of a data set, with a caption."""
    rows = [_line(*line) for line in lines_of(result)]
    return "\n".join([_caption(result), "", HEAD, *rows])


def _line(name, found, without, row):
    def accuracy(kind):
        return f"{mean(r['accuracy'] for r in row[kind]):.3f}"

    experts = mean(values(row["with"], "experts_per_token"))
    verdict = "yes" if max(found) <= LIMIT else "**no**"
    return (
        f"| {name} | {experts:.1f} | {_spread(found)} | {verdict} | "
        f"{_spread(without)} | {accuracy('with')} | {accuracy('without')} |"
    )


def _spread(found):
    return f"{mean(found):.2f} ({max(found):.2f})"


def _caption(result):
    settings = result["settings"]
    return (
        f"{NAMES[result['data']]}, {result['train_images']} images to train "
        f"on, {result['test_images']} held out, {result['epochs']} epochs, "
        f"{result['seeds']} seeds, {settings['num_blocks']} MoE block(s) of "
        f"{settings['num_experts']} experts, {result['backend']}:"
    )


def draw(result, path):
    """Draw two bars per router, the worst value as whiskers, and the limit."""
    lines = lines_of(result)[::-1]
    figure, axes = plt.subplots(figsize=(7, 0.4 * len(lines) + 1))
    for i, (label, color) in enumerate((("without", "0.7"), ("with", "C0"))):
        found = [line[2 - i] for line in lines]
        means = [mean(f) for f in found]
        worst = [max(f) - m for f, m in zip(found, means, strict=True)]
        axes.barh(
            [place + 0.4 * i - 0.2 for place in range(len(lines))],
            means,
            height=0.4,
            xerr=([0] * len(lines), worst),
            color=color,
            label=f"{label} balancing",
            error_kw={"linewidth": 0.8},
        )
    axes.axvline(LIMIT, color="black", linewidth=0.8, linestyle="--")
    axes.set_yticks(range(len(lines)), [line[0] for line in lines])
    axes.set(xlim=(0.8, None), title=NAMES[result["data"]])
    axes.set_xlabel("most loaded expert over the even share, mean and worst")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)
