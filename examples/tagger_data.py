"""Named entities for `tagger.py`: WNUT17, WikiGold, and words as tokens.

N sentences, S words a sentence.
"""

import re
from collections import Counter
from typing import NamedTuple

import numpy as np

PAD, UNKNOWN = range(2)
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


def class_of(word):
    """Returns the token of a rare word: how it is written, and how it ends.

    The ending is that of words in lower case, which says what they are.
    """
    ending = word[-2:] if shape(word) == "x" else ""
    return f"<{shape(word)} {ending}>"


class Encoder:
    """Sentences as ids, one a word, with their tags.

    A word that training has once stands for those that it has not: both are
    read as their class. So the model learns what to make of unknown words.

    Args:
        sentences: of the training part.
        most_words: S; longer sentences are cut, and what is cut is tagged O.
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
        """Returns a word, or its class."""
        return word if word in self.known else class_of(word)

    def encode(self, sentences):
        """Returns ids int32 `(N, S)`."""
        ids = np.full((len(sentences), self.most_words), PAD, "int32")
        for row, sentence in zip(ids, sentences, strict=True):
            words = sentence.words[: self.most_words]
            found = [self.ids.get(self.token(w), UNKNOWN) for w in words]
            row[: len(words)] = found
        return ids

    def for_training(self, sentences):
        """Returns `(inputs, targets, weights)`, each `(N, S)`."""
        inputs = self.encode(sentences)
        targets = np.zeros_like(inputs)
        for row, sentence in zip(targets, sentences, strict=True):
            tags = sentence.tags[: self.most_words]
            row[: len(tags)] = [self.tags.index(tag) for tag in tags]
        return inputs, targets, (inputs != PAD).astype("float32")

    def decode(self, logits, sentences):
        """Returns a tag for each word, of logits `(N, S, tags)`."""
        best = np.argmax(logits, axis=-1)
        return [
            [self.tags[i] for i in row[: len(s.words)]]
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
