"""Load CLINC150 (Larson et al. 2019): questions with intents and domains.

N questions, S words per question.
"""

import json
from collections import Counter
from dataclasses import dataclass

import numpy as np

MOST_WORDS = 28  # in the longest question
SPLITS = ("train", "val", "test")
PADDING, UNKNOWN = 0, 1


@dataclass(frozen=True)
class Questions:
    """Holds the questions of one split.

    Args:
        texts: list of N strings.
        words: int32 `(N, S)`. Ids of words; 0 is padding.
        intent: int32 `(N,)`. 0 ... 149.
        domain: int32 `(N,)`. 0 ... 9.
    """

    texts: list[str]
    words: np.ndarray
    intent: np.ndarray
    domain: np.ndarray

    def first(self, count):
        """Return about `count` questions, at equal distances."""
        step = max(1, len(self.texts) // count)
        return Questions(
            self.texts[::step],
            self.words[::step],
            self.intent[::step],
            self.domain[::step],
        )


def load(folder):
    """Return `({split: Questions}, vocabulary size, names of domains)`."""
    data = json.loads((folder / "data_full.json").read_text())
    domains = json.loads((folder / "domains.json").read_text())
    intents = [name for names in domains.values() for name in names]
    domain_of = [d for d, names in enumerate(domains.values()) for _ in names]
    number = {name: n for n, name in enumerate(intents)}
    vocabulary = words_of(text for text, _ in data["train"])
    splits = {}
    for split in SPLITS:
        texts = [text for text, _ in data[split]]
        intent = np.array([number[name] for _, name in data[split]], "int32")
        splits[split] = Questions(
            texts,
            encode(texts, vocabulary),
            intent,
            np.array(domain_of, "int32")[intent],
        )
    return splits, len(vocabulary) + 2, list(domains)


def words_of(texts):
    """Return the ids of the words that occur at least twice in the texts."""
    counts = Counter(word for text in texts for word in split(text))
    words = sorted(word for word, count in counts.items() if count > 1)
    return {word: n for n, word in enumerate(words, UNKNOWN + 1)}


def split(text):
    """Return the words of a question; `what's` becomes two words."""
    return text.lower().replace("'", " '").replace(",", " ,").split()


def encode(texts, vocabulary):
    """Return the ids of the words of each text, int32 `(N, S)`."""
    ids = np.full((len(texts), MOST_WORDS), PADDING, "int32")
    for row, text in zip(ids, texts, strict=True):
        words = [vocabulary.get(w, UNKNOWN) for w in split(text)[:MOST_WORDS]]
        row[: len(words)] = words
    return ids
