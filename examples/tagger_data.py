"""Named entities for `tagger.py`: WNUT17, WikiGold, and words as tokens.

N sentences, W words a sentence, P pieces a word, S = W * P tokens.
"""

import re
from collections import Counter
from typing import NamedTuple

import numpy as np

PAD, UNKNOWN = range(2)
FIRST_PIECE = 2
FILES = {
    "wnut17": ("wnut17train.conll", "emerging.test.annotated"),
    "wikigold": ("wikigold.conll",),
}


class Sentence(NamedTuple):
    """Words, and a tag for each: O, B-TYPE or I-TYPE."""

    words: tuple[str, ...]
    tags: tuple[str, ...]


def load(name, folder):
    """Returns training and held-out sentences of a data set.

    WNUT17 (Derczynski et al. 2017) has a test set. WikiGold (Balasuriya et
    al. 2009) has no split: the last fifth is held out, which is other articles
    than the first four; its IO tags become BIO.
    """
    parts = [read(folder / file) for file in FILES[name]]
    if len(parts) == 2:
        return parts
    sentences = [Sentence(s.words, to_bio(s.tags)) for s in parts[0]]
    cut = len(sentences) * 4 // 5
    return sentences[:cut], sentences[cut:]


def read(path):
    """Returns the sentences of a file of one word and its tag a line."""
    sentences, rows = [], []
    for line in [*path.read_text(encoding="utf-8").split("\n"), ""]:
        if line.strip() and not line.startswith("-DOCSTART-"):
            rows.append(line.split())
        elif rows:
            sentences.append(Sentence(*zip(*rows, strict=True)))
            rows = []
    return sentences


def to_bio(tags):
    """Returns IO tags as BIO: a run of one type is one entity."""
    before = ("O", *tags)
    return tuple(
        tag if tag == "O" else ("I-" if tag == last else "B-") + tag[2:]
        for last, tag in zip(before, tags, strict=False)
    )


def shape(word):
    """Returns how a word is written: X, x and d, each run once.

    `Iowa` is Xx, `NASA` X, `B2B` XdX and `@you` @x.
    """
    text = re.sub(r"[^\W\d_]", lambda m: "X" if m[0].isupper() else "x", word)
    return re.sub(r"(.)\1+", r"\1", re.sub(r"\d", "d", text))[:6]


def pieces(word):
    """Returns the P tokens of a word: its shape, its ending, itself.

    A word that training did not have keeps the first two.
    """
    lower = word.lower()
    return "shape " + shape(word), "ending " + lower[-3:], lower


class Encoder:
    """Sentences as ids; a word's tag is read at its last piece.

    Args:
        sentences: of the training part; pieces that come once are unknown.
        most_words: W; longer sentences are cut, and what is cut has the tag O.
    """

    pieces_per_word = len(pieces(""))

    def __init__(self, sentences, most_words):
        counts = Counter(
            piece for s in sentences for w in s.words for piece in pieces(w)
        )
        known = (piece for piece, count in counts.items() if count > 1)
        self.ids = {piece: n for n, piece in enumerate(known, FIRST_PIECE)}
        self.size = len(self.ids) + FIRST_PIECE
        self.tags = sorted({tag for s in sentences for tag in s.tags})
        self.most_words = most_words
        self.length = most_words * self.pieces_per_word

    def encode(self, sentences):
        """Returns `(inputs, targets, weights)`, each `(N, S)`."""
        shape = (len(sentences), self.most_words, self.pieces_per_word)
        inputs, targets = np.full(shape, PAD, "int32"), np.zeros(shape, "int32")
        weights = np.zeros(shape, "float32")
        for n, sentence in enumerate(sentences):
            pairs = zip(sentence.words, sentence.tags, strict=True)
            for w, (word, tag) in zip(range(self.most_words), pairs):  # noqa: B905
                inputs[n, w] = [self.ids.get(p, UNKNOWN) for p in pieces(word)]
                targets[n, w, -1] = self.tags.index(tag)
                weights[n, w, -1] = 1
        flat = (len(sentences), self.length)
        return tuple(a.reshape(flat) for a in (inputs, targets, weights))

    def decode(self, logits, sentences):
        """Returns a tag for each word, of logits `(N, S, tags)`."""
        best = np.argmax(logits, axis=-1)
        best = best.reshape(len(best), self.most_words, self.pieces_per_word)
        return [
            [self.tags[i] for i in row[: len(s.words), -1]]
            + ["O"] * (len(s.words) - self.most_words)
            for row, s in zip(best, sentences, strict=True)
        ]


def tags_by_word(training, sentences):
    """Returns each word's most frequent tag in training; O if unknown."""
    counts = {}
    for s in training:
        for word, tag in zip(s.words, s.tags, strict=True):
            counts.setdefault(word, Counter())[tag] += 1
    best = {word: count.most_common(1)[0][0] for word, count in counts.items()}
    return [[best.get(word, "O") for word in s.words] for s in sentences]
