"""Route whole questions to the expert of their domain.

    python examples/domains/main.py [--data FOLDER] [--seeds 3]

CLINC150 (Larson et al. 2019) has 150 intents in ten domains. Each of ten
experts is trained on the questions of one domain. The experts are mixed in two
ways: by a rule that is given the domain, and by a router that learns the domain
from the intents alone, with frozen experts. The learned mixture is trained with
all experts and then served with one. The table shows its accuracy, how often
the router selects the expert of the domain, and the cost of one expert over
that of all ten. The table also contains TF-IDF with a linear SVM, and a single
model, which has the architecture that one question passes through and is
trained on all questions. Experts are either all convolutions, or of three kinds
(convolution, LSTM, transformer).
"""

import sys
import time
from pathlib import Path

import numpy as np
import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shared import options as cli
from shared.program import write_json

SOURCE = ("clinc150", "data_full.json")
EXPERT_EPOCHS, ROUTER_EPOCHS, SINGLE_EPOCHS = 15, 4, 10
ROUNDS = 7  # of each timing, in turns
TIMED = 512  # questions per call
COLUMNS = {
    "by rule": "domain given",
    "all": "learned, all experts",
    "one": "learned, one expert",
    "agreement": "router names the domain",
    "cost": "time, one over all",
    "single": "single model",
}


def main(
    backend: cli.Backend = "torch",
    seeds: cli.Seeds = 3,
    quick: cli.Quick = False,
    output: cli.Output = None,
    data: cli.Data = None,
):
    """Route whole questions to the expert of their domain."""
    options = cli.Options("domains", backend, seeds, quick, output, data)
    raise typer.Exit(cli.start(options, run, sources=[SOURCE]))


def run(options):
    """Train and compare the models, and write the results; return 0."""
    from rich.console import Console

    from domains import models, questions

    console = Console()
    splits, size, _ = questions.load(options.source(*SOURCE).parent)
    if options.quick:
        splits = {name: part.first(300) for name, part in splits.items()}
    kinds = {"convolutions": models.KINDS[:1]}
    kinds["three kinds"] = models.KINDS
    if options.quick:
        del kinds["convolutions"]
    results = {
        "backend": options.backend,
        "quick": options.quick,
        "tf-idf": tf_idf(splits),
        "experts": {name: [] for name in kinds},
    }
    for name, turn in kinds.items():
        for seed in range(options.seeds):
            result = one_seed(splits, size, turn, seed, options)
            results["experts"][name].append(result)
            console.print(f"{name}, seed {seed}: {result}", soft_wrap=True)
    write_json(results, options.output / "results.json")
    text = table(results)
    (options.output / "results.md").write_text(text)
    console.print(text, soft_wrap=True)
    return 0


def one_seed(splits, size, kinds, seed, options):
    """Train and evaluate the mixtures of one seed; return the figures."""
    import keras

    from domains import models

    keras.utils.set_random_seed(seed)
    train, test = splits["train"], splits["test"]

    def accuracy(model, inputs):
        probs = model.predict(inputs, batch_size=TIMED, verbose=0)
        return float(np.mean(probs.argmax(-1) == test.intent))

    experts = models.make_experts(kinds, size)
    models.train_by_domain(experts, train, options.count(EXPERT_EPOCHS, 2))
    models.freeze(experts)
    ruled = models.by_domain(experts)
    weighed = models.all_weighed(experts, size)
    epochs = options.count(ROUTER_EPOCHS, 2)
    models.fit(weighed, train.words, train.intent, epochs)
    chosen = models.one_chosen(weighed)
    single = models.make_single(kinds[0], size)
    epochs = options.count(SINGLE_EPOCHS, 2)
    models.fit(single, train.words, train.intent, epochs)
    named = models.expert_of(chosen, test.words)
    return {
        "by rule": accuracy(ruled, [test.words, test.domain]),
        "all": accuracy(weighed, test.words),
        "one": accuracy(chosen, test.words),
        "agreement": float(np.mean(named == test.domain)),
        "cost": cost(chosen, weighed, test.words[:TIMED]),
        "single": accuracy(single, test.words),
    }


def tf_idf(splits):
    """Return the accuracy of TF-IDF on words and word pairs with an SVM."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_pipeline
    from sklearn.svm import LinearSVC

    model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2)), LinearSVC())
    model.fit(splits["train"].texts, splits["train"].intent)
    return model.score(splits["test"].texts, splits["test"].intent)


def cost(one, other, inputs):
    """Return the median ratio of two models' CPU times, taken in turns."""
    ratios = []
    for model in (one, other):
        model.predict_on_batch(inputs)  # compiles the model
    for _ in range(ROUNDS):
        times = []
        for model in (one, other):
            start = time.process_time()
            model.predict_on_batch(inputs)
            times.append(time.process_time() - start)
        ratios.append(times[0] / times[1])
    return float(np.median(ratios))


def table(results):
    """Return a Markdown table of the means over the seeds."""
    lines = [
        "| experts | " + " | ".join(COLUMNS.values()) + " | TF-IDF, SVM |",
        "|" + " --- |" * (len(COLUMNS) + 2),
    ]
    for name, seeds in results["experts"].items():
        means = [np.mean([seed[key] for seed in seeds]) for key in COLUMNS]
        cells = [f"{mean:.3f}" for mean in means]
        cells.append(f"{results['tf-idf']:.3f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    typer.run(main)
