"""Trains taggers of named entities, MoE and dense twin, on two data sets.

    python examples/tagger.py [--data FOLDER] [--backend torch] [--seeds 3]

WNUT17 (tweets, comments and the like; six types; entities that training did
not have) and WikiGold (Wikipedia; four types). FOLDER holds `wnut17` and
`wikigold`. A token is a word, or for a rare word the way it is written; no
embeddings of other texts help. MoE and dense twin of equal active FLOPs are
trained alike for three seeds and compared by the F1 of whole entities.
"""

import twins
import typer

MOST_WORDS = 40
BATCH_SIZE = 32
EPOCHS = 8
LEARNING_RATE = 2e-3
DROPOUT = 0.3
SIZE = {"num_layers": 2, "hidden_dim": 64, "intermediate_dim": 64}
QUICK_SIZE = {"num_layers": 1, "hidden_dim": 16, "intermediate_dim": 16}


def make_tasks(options):
    """Returns a task for each data set."""
    import tagger_data as data

    return [make_task(options, name) for name in data.FILES]


def make_task(options, name):
    """Returns the task of one data set."""
    import tagger_data as data
    import twins_model

    import keras_moe

    sentences, held_out = data.load(name, options.source(name))
    sentences = sentences[: options.count(None, 128)]
    held_out = held_out[: options.count(None, 32)]
    encoder = data.Encoder(sentences, options.count(MOST_WORDS, 12))
    inputs = encoder.encode(held_out)

    def build(**kind):
        return keras_moe.models.MoETagger(
            vocabulary_size=encoder.size,
            num_tags=len(encoder.tags),
            max_length=encoder.most_words,
            num_heads=4,
            **kind,
            dropout=DROPOUT,
            **options.count(SIZE, QUICK_SIZE),
        )

    def train(model, seed):
        twins_model.fit(
            model,
            encoder.for_training(sentences),
            BATCH_SIZE,
            options.count(EPOCHS, 2),
            peak=LEARNING_RATE,
        )

    def evaluate(model):
        logits = model.predict(inputs, batch_size=64, verbose=0)
        return scores(encoder.decode(logits, held_out), held_out)

    by_word = scores(data.tags_by_word(sentences, held_out), held_out)
    return twins.Task(
        name=name,
        figure="F1",
        better="higher",
        build=build,
        train=train,
        evaluate=evaluate,
        sample=inputs[:32],
        floor=("each word's usual tag", by_word["F1"]),
    )


def scores(predicted, sentences):
    """Returns F1, precision and recall of whole entities, 0 ... 100."""
    import seqeval.metrics as metrics

    tags = [list(s.tags) for s in sentences]
    options = {"zero_division": 0}
    return {
        "F1": 100 * float(metrics.f1_score(tags, predicted, **options)),
        "precision": 100
        * float(metrics.precision_score(tags, predicted, **options)),
        "recall": 100 * float(metrics.recall_score(tags, predicted, **options)),
    }


def main(
    backend: twins.Backend = "torch",
    seeds: twins.Seeds = 3,
    quick: twins.Quick = False,
    output: twins.Output = None,
    data: twins.Data = None,
):
    """Trains taggers of named entities, MoE and dense twin."""
    options = twins.Options("tagger", backend, seeds, quick, output, data)
    sources = [("wnut17",), ("wikigold",)]
    raise typer.Exit(twins.run(options, ("seqeval",), make_tasks, sources))


if __name__ == "__main__":
    typer.run(main)
