"""Train a translator of user-interface English and its dense twin.

    python examples/translation.py [--backend torch] [--seeds 3]

The data are about 2,500 short texts of JupyterLab's user interface and their
French translations, from the package `jupyterlab-language-pack-fr-FR`
(BSD-3-Clause). A tenth of them is held out. The texts are split into subwords
of one vocabulary. The MoE and its dense twin of equal active FLOPs are trained
in the same way for three seeds, translate the held-out texts greedily, and are
compared by BLEU. So little text teaches the phrases of one program, not a
language.

N pairs, S tokens per text.
"""

import gettext
import hashlib
import importlib.metadata

import numpy as np
import typer

from shared import options as cli
from shared import twins

LENGTH = 32
VOCABULARY_SIZE = 2000
BATCH_SIZE = 32
EPOCHS = 20
LEARNING_RATE = 2e-3
DROPOUT = 0.2
SIZE = {"num_layers": 2, "hidden_dim": 96, "intermediate_dim": 96}
QUICK_SIZE = {"num_layers": 1, "hidden_dim": 16, "intermediate_dim": 16}
PACKAGE = "jupyterlab-language-pack-fr-FR"
HELD_OUT_IN = 10  # one pair in ten
MARKUP = "<>{}[]`\\\n|=_$"
MOST_WORDS = 15
PAD, UNKNOWN, START, END = range(4)
SPECIAL = ["<pad>", "<unk>", "<start>", "<end>"]


def load_pairs():
    """Return `(training, held_out)` lists of `(english, french)`.

    A tenth is held out. It is chosen by a hash of the English text, so that it
    is the same on every machine. No text of either language occurs twice, even
    with different case or punctuation, so that no text is in both parts.
    """
    parts = ([], [])
    for pair in unique(filter(is_prose, read_catalogues())):
        parts[is_held_out(pair[0])].append(pair)
    return parts


def read_catalogues():
    """Yield every `(english, french)` of the package's `.mo` files.

    Headers (no English) and plural forms (a tuple as key) are omitted. The part
    before \\x04 is the context of a text, and is removed.
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
    """Strip a text; use plain apostrophes, ellipses, and spaces."""
    for old, new in (("\u2019", "'"), ("\u2026", "..."), ("\xa0", " ")):
        text = text.replace(old, new)
    return text.strip()


def is_prose(pair):
    """Return whether a pair is translated, short, and without markup."""
    english, french = pair
    return (
        english != french
        and any(c.isalpha() for c in french)
        and not any(c in MARKUP for c in english + french)
        and max(len(english.split()), len(french.split())) <= MOST_WORDS
    )


def unique(pairs):
    """Yield the pairs whose texts did not occur before."""
    seen = (set(), set())
    for pair in pairs:
        keys = [letters(text) for text in pair]
        if not any(key in s for key, s in zip(keys, seen, strict=True)):
            yield pair
        for key, s in zip(keys, seen, strict=True):
            s.add(key)


def letters(text):
    """Return the letters and digits of a text, in lower case."""
    return "".join(c for c in text.lower() if c.isalnum())


def is_held_out(english):
    """Return 1 for a tenth of all texts, 0 for the rest."""
    digest = hashlib.sha256(english.encode()).digest()
    return int(int.from_bytes(digest[:8]) % HELD_OUT_IN == 0)


def train_tokenizer(pairs, vocabulary_size):
    """Return one byte-pair encoding (Sennrich et al. 2016) of both sides."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

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
    """Return int32 `(N, S)`, each row with start, text, end, and padding.

    A text of more than S - 2 tokens is truncated.
    """
    ids = np.full((len(texts), length), PAD, "int32")
    for row, text in zip(ids, texts, strict=True):
        tokens = tokenizer.encode(text).ids[: length - 2]
        row[: len(tokens) + 2] = [START, *tokens, END]
    return ids


def decode(tokenizer, ids):
    """Return the texts of int `(N, S)`, each up to its end token."""
    texts = []
    for row in ids:
        tokens = [int(i) for i in row if i not in (PAD, START)]
        if END in tokens:
            tokens = tokens[: tokens.index(END)]
        texts.append(tokenizer.decode(tokens).strip())
    return texts


def for_training(english, french):
    """Return `(inputs, targets, weights)` for two int32 arrays `(N, S)`.

    The decoder reads the French text from its start token, and predicts the
    next token at each position. Padding has weight 0.
    """
    targets = french[:, 1:]
    inputs = {
        "encoder_token_ids": english,
        "decoder_token_ids": french[:, :-1],
    }
    return inputs, targets, (targets != PAD).astype("float32")


def make_tasks(options):
    """Return the one task."""
    import keras_moe

    pairs, held_out = load_pairs()
    pairs = pairs[: options.count(None, 200)]
    held_out = held_out[: options.count(None, 20)]
    length = options.count(LENGTH, 16)
    tokenizer = train_tokenizer(pairs, options.count(VOCABULARY_SIZE, 300))
    english, french = (
        encode(tokenizer, texts, length) for texts in zip(*pairs, strict=True)
    )
    sources, references = (list(texts) for texts in zip(*held_out, strict=True))
    source_ids = encode(tokenizer, sources, length)
    reference_ids = encode(tokenizer, references, length)

    def build(**kind):
        return keras_moe.models.MoESeq2Seq(
            vocabulary_size=tokenizer.get_vocab_size(),
            max_length=length,
            num_heads=4,
            **kind,
            dropout=DROPOUT,
            **options.count(SIZE, QUICK_SIZE),
        )

    def train(model, seed):
        twins.fit(
            model,
            for_training(english, french),
            BATCH_SIZE,
            options.count(EPOCHS, 1),
            peak=LEARNING_RATE,
        )

    def translate(model):
        ids = model.generate(
            source_ids,
            max_length=length,
            start_token_id=START,
            end_token_id=END,
        )
        return decode(tokenizer, ids)

    def examples(model):
        found = zip(sources, translate(model), references, strict=True)
        return {"translations": list(found)[:10]}

    sample, _, _ = for_training(source_ids[:32], reference_ids[:32])
    return [
        twins.Task(
            name="jupyterlab_en_fr",
            figure="BLEU",
            better="higher",
            build=build,
            train=train,
            evaluate=lambda model: scores(translate(model), references),
            sample=sample,
            floor=("English as it is", scores(sources, references)["BLEU"]),
            more=examples,
        )
    ]


def scores(translations, references):
    """Return corpus BLEU and chrF of sacrebleu, 0 ... 100."""
    import sacrebleu

    bleu = sacrebleu.corpus_bleu(translations, [references])
    chrf = sacrebleu.corpus_chrf(translations, [references])
    return {"BLEU": bleu.score, "chrF": chrf.score}


def main(
    backend: cli.Backend = "torch",
    seeds: cli.Seeds = 3,
    quick: cli.Quick = False,
    output: cli.Output = None,
):
    """Train a translator of user-interface English and its dense twin."""
    options = cli.Options("translation", backend, seeds, quick, output)
    packages = ("sacrebleu", "tokenizers", "jupyterlab_language_pack_fr_FR")
    raise typer.Exit(twins.run(options, packages, make_tasks))


if __name__ == "__main__":
    typer.run(main)
