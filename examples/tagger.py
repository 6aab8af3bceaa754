"""Train MoE taggers of named entities and dense twins, on two data sets.

    python examples/tagger.py [--data FOLDER] [--backend torch] [--seeds 3]

The data sets are WNUT17 (tweets, comments, and similar texts; six types; test
entities that do not occur in training) and WikiGold (Wikipedia; four types).
FOLDER contains `wnut17` and `wikigold`. A token is a word, or the spelling
pattern of a rare word. There are no pretrained embeddings. The MoE and its
dense twin of equal active FLOPs are trained in the same way for three seeds,
and compared by the F1 of whole entities.

N sentences, S words per sentence.
"""

import re
from collections import Counter
from typing import NamedTuple

import numpy as np
import typer

from shared import options as cli
from shared import twins

MOST_WORDS = 40
BATCH_SIZE = 32
EPOCHS = 8
LEARNING_RATE = 2e-3
DROPOUT = 0.3
SIZE = {"num_layers": 2, "hidden_dim": 64, "intermediate_dim": 64}
QUICK_SIZE = {"num_layers": 1, "hidden_dim": 16, "intermediate_dim": 16}
PAD, UNKNOWN = range(2)
FILES = {
    "wnut17": ("wnut17train.conll", "emerging.test.annotated"),
    "wikigold": ("wikigold.conll",),
}


class Sentence(NamedTuple):
    """Words with one tag each: O, B-TYPE, or I-TYPE."""

    words: tuple[str, ...]
    tags: tuple[str, ...]


def load(name, folder):
    """Return training and held-out sentences of a data set.

    WNUT17 (Derczynski et al. 2017) has a test set. WikiGold (Balasuriya et
    al. 2009) has no split, so the last fifth is held out, which contains other
    articles than the rest. Its IO tags are converted to BIO.
    """
    parts = [read(folder / file) for file in FILES[name]]
    if len(parts) == 2:
        return parts
    sentences = [Sentence(s.words, to_bio(s.tags)) for s in parts[0]]
    cut = len(sentences) * 4 // 5
    return sentences[:cut], sentences[cut:]


def read(path):
    """Return the sentences of a file with one word and its tag per line."""
    sentences, rows = [], []
    for line in [*path.read_text(encoding="utf-8").split("\n"), ""]:
        if line.strip() and not line.startswith("-DOCSTART-"):
            rows.append(line.split())
        elif rows:
            sentences.append(Sentence(*zip(*rows, strict=True)))
            rows = []
    return sentences


def to_bio(tags):
    """Return IO tags as BIO, with one entity per run of one type."""
    before = ("O", *tags)
    return tuple(
        tag if tag == "O" else ("I-" if tag == last else "B-") + tag[2:]
        for last, tag in zip(before, tags, strict=False)
    )


def shape(word):
    """Return the spelling pattern of a word.

    Letters become X or x and digits d, and each run is written once: `Iowa` is
    Xx, `NASA` is X, `B2B` is XdX, and `@you` is @x.
    """
    text = re.sub(r"[^\W\d_]", lambda m: "X" if m[0].isupper() else "x", word)
    return re.sub(r"(.)\1+", r"\1", re.sub(r"\d", "d", text))[:6]


def class_of(word):
    """Return the token of a rare word: its spelling pattern and its ending.

    Only words in lower case have an ending, which indicates the part of speech.
    """
    ending = word[-2:] if shape(word) == "x" else ""
    return f"<{shape(word)} {ending}>"


class Encoder:
    """Encodes sentences as ids, one per word, with their tags.

    A word that occurs once in training is replaced by its class, and so is a
    word that does not occur there. The model thus learns to handle them.

    Args:
        sentences: Sentences of the training part.
        most_words: int. S. Longer sentences are truncated, and the remaining
            words are tagged O.
    """

    def __init__(self, sentences, most_words):
        words = Counter(word for s in sentences for word in s.words)
        self.known = {word for word, count in words.items() if count > 1}
        tokens = Counter(self.token(word) for word in words.elements())
        often = (token for token, count in tokens.items() if count > 1)
        self.ids = {token: n for n, token in enumerate(often, UNKNOWN + 1)}
        self.size = len(self.ids) + UNKNOWN + 1
        self.tags = sorted({tag for s in sentences for tag in s.tags})
        self.most_words = most_words

    def token(self, word):
        """Return a word, or its class if it is rare."""
        return word if word in self.known else class_of(word)

    def encode(self, sentences):
        """Return ids int32 `(N, S)`."""
        ids = np.full((len(sentences), self.most_words), PAD, "int32")
        for row, sentence in zip(ids, sentences, strict=True):
            words = sentence.words[: self.most_words]
            found = [self.ids.get(self.token(w), UNKNOWN) for w in words]
            row[: len(words)] = found
        return ids

    def for_training(self, sentences):
        """Return `(inputs, targets, weights)`, each `(N, S)`."""
        inputs = self.encode(sentences)
        targets = np.zeros_like(inputs)
        for row, sentence in zip(targets, sentences, strict=True):
            tags = sentence.tags[: self.most_words]
            row[: len(tags)] = [self.tags.index(tag) for tag in tags]
        return inputs, targets, (inputs != PAD).astype("float32")

    def decode(self, logits, sentences):
        """Return a tag for each word, from logits `(N, S, tags)`."""
        best = np.argmax(logits, axis=-1)
        return [
            [self.tags[i] for i in row[: len(s.words)]]
            + ["O"] * (len(s.words) - self.most_words)
            for row, s in zip(best, sentences, strict=True)
        ]


def tags_by_word(training, sentences):
    """Return each word's most frequent tag in training; O if unknown."""
    counts = {}
    for s in training:
        for word, tag in zip(s.words, s.tags, strict=True):
            counts.setdefault(word, Counter())[tag] += 1
    best = {word: count.most_common(1)[0][0] for word, count in counts.items()}
    return [[best.get(word, "O") for word in s.words] for s in sentences]


def make_tasks(options):
    """Return a task for each data set."""
    return [make_task(options, name) for name in FILES]


def make_task(options, name):
    """Return the task of one data set."""
    import keras_moe

    sentences, held_out = load(name, options.source(name))
    sentences = sentences[: options.count(None, 128)]
    held_out = held_out[: options.count(None, 32)]
    encoder = Encoder(sentences, options.count(MOST_WORDS, 12))
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
        twins.fit(
            model,
            encoder.for_training(sentences),
            BATCH_SIZE,
            options.count(EPOCHS, 2),
            peak=LEARNING_RATE,
        )

    def evaluate(model):
        logits = model.predict(inputs, batch_size=64, verbose=0)
        return scores(encoder.decode(logits, held_out), held_out)

    by_word = scores(tags_by_word(sentences, held_out), held_out)
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
    """Return F1, precision, and recall of whole entities, 0 ... 100."""
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
    backend: cli.Backend = "torch",
    seeds: cli.Seeds = 3,
    quick: cli.Quick = False,
    output: cli.Output = None,
    data: cli.Data = None,
):
    """Train MoE taggers of named entities and dense twins."""
    options = cli.Options("tagger", backend, seeds, quick, output, data)
    sources = [("wnut17",), ("wikigold",)]
    raise typer.Exit(twins.run(options, ("seqeval",), make_tasks, sources))


if __name__ == "__main__":
    typer.run(main)
