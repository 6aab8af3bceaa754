"""Trains a translator of user-interface English, MoE and dense twin.

    python examples/translation.py [--backend torch] [--seeds 3]

About 2,500 short texts of JupyterLab and their French translations, a tenth of
them held out, as sub-words of one vocabulary. The MoE and its dense twin of
equal active FLOPs are trained alike for three seeds, translate the held-out
texts greedily, and are compared by BLEU. So little text teaches the phrases of
one program, not a language.
"""

import twins
import typer

LENGTH = 32
VOCABULARY_SIZE = 2000
BATCH_SIZE = 32
EPOCHS = 20
LEARNING_RATE = 2e-3
DROPOUT = 0.2
SIZE = {"num_layers": 2, "hidden_dim": 96, "intermediate_dim": 96}
QUICK_SIZE = {"num_layers": 1, "hidden_dim": 16, "intermediate_dim": 16}


def make_tasks(options):
    """Returns the one task."""
    import translation_data as data
    import twins_model

    import keras_moe

    pairs, held_out = data.load_pairs()
    pairs = pairs[: options.count(None, 200)]
    held_out = held_out[: options.count(None, 20)]
    length = options.count(LENGTH, 16)
    tokenizer = data.train_tokenizer(pairs, options.count(VOCABULARY_SIZE, 300))
    english, french = (
        data.encode(tokenizer, texts, length)
        for texts in zip(*pairs, strict=True)
    )
    sources, references = (list(texts) for texts in zip(*held_out, strict=True))
    source_ids = data.encode(tokenizer, sources, length)
    reference_ids = data.encode(tokenizer, references, length)

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
        twins_model.fit(
            model,
            data.for_training(english, french),
            BATCH_SIZE,
            options.count(EPOCHS, 1),
            peak=LEARNING_RATE,
        )

    def translate(model):
        ids = model.generate(
            source_ids,
            max_length=length,
            start_token_id=data.START,
            end_token_id=data.END,
        )
        return data.decode(tokenizer, ids)

    def examples(model):
        found = zip(sources, translate(model), references, strict=True)
        return {"translations": list(found)[:10]}

    sample, _, _ = data.for_training(source_ids[:32], reference_ids[:32])
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
    """Returns corpus BLEU and chrF, sacrebleu's, 0 ... 100."""
    import sacrebleu

    bleu = sacrebleu.corpus_bleu(translations, [references])
    chrf = sacrebleu.corpus_chrf(translations, [references])
    return {"BLEU": bleu.score, "chrF": chrf.score}


def main(
    backend: twins.Backend = "torch",
    seeds: twins.Seeds = 3,
    quick: twins.Quick = False,
    output: twins.Output = None,
):
    """Trains a translator of user-interface English, MoE and dense twin."""
    options = twins.Options("translation", backend, seeds, quick, output)
    packages = ("sacrebleu", "tokenizers", "jupyterlab_language_pack_fr_FR")
    raise typer.Exit(twins.run(options, packages, make_tasks))


if __name__ == "__main__":
    typer.run(main)
