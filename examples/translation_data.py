"""English-French pairs of `translation.py`, and their sub-word tokens.

The pairs are the strings of JupyterLab's user interface, from the package
`jupyterlab-language-pack-fr-FR` (BSD-3-Clause).

N pairs, S tokens a text.
"""

import gettext
import hashlib
import importlib.metadata

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

PACKAGE = "jupyterlab-language-pack-fr-FR"
HELD_OUT_IN = 10  # one pair in ten
MARKUP = "<>{}[]`\\\n|=_$"
MOST_WORDS = 15
PAD, UNKNOWN, START, END = range(4)
SPECIAL = ["<pad>", "<unk>", "<start>", "<end>"]


def load_pairs():
    """Returns `(training, held_out)` lists of `(english, french)`.

    A tenth is held out, chosen by a hash of the English text: the same tenth
    on every machine. No text of either language comes twice, be it in other
    case or punctuation, so that none is in both parts.
    """
    parts = ([], [])
    for pair in unique(filter(is_prose, read_catalogues())):
        parts[is_held_out(pair[0])].append(pair)
    return parts


def read_catalogues():
    """Yields every `(english, french)` of the package's `.mo` files.

    Left out: headers (no English) and plural forms (a tuple for a key). What
    stands before \\x04 is the context of a text, not a part of it.
    """
    files = importlib.metadata.files(PACKAGE)
    for file in sorted(f for f in files if f.suffix == ".mo"):
        with open(file.locate(), "rb") as stream:
            catalogue = gettext.GNUTranslations(stream)._catalog
        for english, french in catalogue.items():
            if english and isinstance(english, str):
                english = english.rpartition("\x04")[2]
                yield tidy(english), tidy(french)


def tidy(text):
    """Strips; writes one apostrophe and one ellipsis, and plain spaces."""
    for old, new in (("\u2019", "'"), ("\u2026", "..."), ("\xa0", " ")):
        text = text.replace(old, new)
    return text.strip()


def is_prose(pair):
    """Whether a pair is translated prose: no markup, not long, no name."""
    english, french = pair
    return (
        english != french
        and any(c.isalpha() for c in french)
        and not any(c in MARKUP for c in english + french)
        and max(len(english.split()), len(french.split())) <= MOST_WORDS
    )


def unique(pairs):
    """Yields the pairs neither of whose texts came before."""
    seen = (set(), set())
    for pair in pairs:
        keys = [letters(text) for text in pair]
        if not any(key in s for key, s in zip(keys, seen, strict=True)):
            yield pair
        for key, s in zip(keys, seen, strict=True):
            s.add(key)


def letters(text):
    """Returns the letters and digits of a text, in lower case."""
    return "".join(c for c in text.lower() if c.isalnum())


def is_held_out(english):
    """Returns 1 for a tenth of all texts, 0 for the rest."""
    digest = hashlib.sha256(english.encode()).digest()
    return int(int.from_bytes(digest[:8]) % HELD_OUT_IN == 0)


def train_tokenizer(pairs, vocabulary_size):
    """Returns one byte-pair encoding (Sennrich et al. 2016) of both sides."""
    tokenizer = Tokenizer(models.BPE(unk_token=SPECIAL[UNKNOWN]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()]
    )
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=SPECIAL,
        show_progress=False,
    )
    texts = (text for pair in pairs for text in pair)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode(tokenizer, texts, length):
    """Returns int32 `(N, S)`: start, the text, end, padding.

    A text of more than S - 2 tokens loses its last ones.
    """
    ids = np.full((len(texts), length), PAD, "int32")
    for row, text in zip(ids, texts, strict=True):
        tokens = tokenizer.encode(text).ids[: length - 2]
        row[: len(tokens) + 2] = [START, *tokens, END]
    return ids


def decode(tokenizer, ids):
    """Returns the texts of int `(N, S)`: each up to its end."""
    texts = []
    for row in ids:
        tokens = [int(i) for i in row if i not in (PAD, START)]
        if END in tokens:
            tokens = tokens[: tokens.index(END)]
        texts.append(tokenizer.decode(tokens).strip())
    return texts


def for_training(english, french):
    """Returns `(inputs, targets, weights)` of int32 `(N, S)` and `(N, S)`.

    The decoder reads the French text from its start and is asked for the
    token after each; padding has no weight.
    """
    targets = french[:, 1:]
    inputs = {
        "encoder_token_ids": english,
        "decoder_token_ids": french[:, :-1],
    }
    return inputs, targets, (targets != PAD).astype("float32")
