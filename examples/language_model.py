"""Train a character language model and its dense twin, and generate text.

    python examples/language_model.py [--data FOLDER] [--backend torch]

The data are Tiny Shakespeare (Karpathy 2015), with its last tenth held out. The
MoE and its dense twin of equal active FLOPs are trained for the same number of
steps on the same characters, for three seeds, and compared by the mean loss of
the held-out characters, in nats. The MoE then generates with and without the
cache of keys and values, which must give the same tokens, and the time of a
token is measured at several positions.

B batch, S context, N windows, V characters and padding.
"""

import time

import numpy as np
import typer

from shared import options as cli
from shared import twins
from shared.checks import judge

SOURCE = ("tinyshakespeare", "input.txt")
CONTEXT = 64
BATCH_SIZE = 16
STEPS = 1500
LEARNING_RATE = 2e-3
SIZE = {"num_layers": 3, "hidden_dim": 128, "intermediate_dim": 256}
QUICK_SIZE = {"num_layers": 1, "hidden_dim": 16, "intermediate_dim": 16}
LONGEST = 512  # characters that the model can generate
PROMPT = "ROMEO:\nWhat"
TIMINGS = 30


class Characters:
    """Encodes characters as ids 1 ... V - 1, in order of their code points."""

    def __init__(self, text):
        self.symbols = sorted(set(text))
        self.ids = {symbol: n for n, symbol in enumerate(self.symbols, 1)}
        self.size = len(self.symbols) + 1

    def encode(self, text):
        """Return int32 `(length,)`."""
        return np.array([self.ids[symbol] for symbol in text], "int32")

    def decode(self, ids):
        """Return the text of ids, without padding."""
        return "".join(self.symbols[i - 1] for i in ids if i)


def split(ids):
    """Return the first nine tenths and the last."""
    cut = len(ids) * 9 // 10
    return ids[:cut], ids[cut:]


def windows(ids, starts, context):
    """Return `(inputs, targets, weights)`, each `(N, S)`.

    The targets of a window are its inputs, shifted by one character.
    """
    rows = ids[np.asarray(starts)[:, None] + np.arange(context + 1)]
    return rows[:, :-1], rows[:, 1:], np.ones((len(rows), context), "float32")


def random_windows(ids, count, context, seed):
    """Return windows that start at random places; see `windows`."""
    starts = np.random.default_rng(seed).integers(0, len(ids) - context, count)
    return windows(ids, starts, context)


def all_windows(ids, context):
    """Return windows that contain each target once; see `windows`."""
    return windows(ids, np.arange(0, len(ids) - context, context), context)


def make_tasks(options):
    """Return the one task."""
    import keras_moe

    path = options.source(*SOURCE)
    text = path.read_text(encoding="utf-8")
    characters = Characters(text)
    train_ids, held_out_ids = split(characters.encode(text))
    held_out = all_windows(held_out_ids, CONTEXT)
    if options.quick:
        held_out = tuple(part[:64] for part in held_out)
    count = options.count(STEPS, 20) * BATCH_SIZE

    def build(**kind):
        return keras_moe.models.MoELanguageModel(
            vocabulary_size=characters.size,
            max_length=options.count(LONGEST, 32),
            num_heads=4,
            **kind,
            **options.count(SIZE, QUICK_SIZE),
        )

    def train(model, seed):
        data = random_windows(train_ids, count, CONTEXT, seed)
        twins.fit(model, data, BATCH_SIZE, 1, peak=LEARNING_RATE, shuffle=False)

    def evaluate(model):
        inputs, targets, _ = held_out
        loss = model.evaluate(inputs, targets, batch_size=64, verbose=0)
        return {"loss": float(loss)}

    return [
        twins.Task(
            name="tinyshakespeare",
            figure="loss",
            better="lower",
            build=build,
            train=train,
            evaluate=evaluate,
            sample=held_out[0][:32],
            more=lambda model: generation(model, characters),
        )
    ]


def generation(model, characters):
    """Generate with and without the cache, and time it."""
    prompt = characters.encode(PROMPT)[None]
    length = min(128, model.max_length)
    written, seconds = {}, {}
    for name, use_cache in (("cached", True), ("uncached", False)):
        model.generate(prompt, length, use_cache=use_cache)  # compiles the step
        start = time.process_time()
        (ids,) = model.generate(prompt, length, use_cache=use_cache)
        seconds[name] = round(time.process_time() - start, 3)
        written[name] = ids
    text = characters.decode(written["cached"])
    print(text)
    different = np.sum(written["cached"] != written["uncached"])
    return {
        "differences": {"tokens without the cache": judge(int(different), 0)},
        "text": text,
        "tokens": length - prompt.shape[1],
        "cpu_seconds": seconds,
        "cpu_milliseconds_at_position": time_positions(model),
    }


def time_positions(model):
    """Return the time of one cached token at several positions."""
    length = model.max_length
    positions = [0, *(length * n // 4 for n in (1, 2, 3)), length - 1]
    return {position: time_step(model, position) for position in positions}


def time_step(model, position):
    """Return the median CPU time of a step, in milliseconds."""
    from keras import ops

    token = ops.ones((1, 1), dtype="int32")
    cache = model.empty_cache(1, model.max_length)
    index = ops.convert_to_tensor(position, dtype="int32")
    times = []
    for _ in range(TIMINGS):
        start = time.process_time()
        logits, _ = model.step(token, cache, index)
        ops.convert_to_numpy(logits)
        times.append(time.process_time() - start)
    return round(1e3 * float(np.median(times)), 2)


def main(
    backend: cli.Backend = "torch",
    seeds: cli.Seeds = 3,
    quick: cli.Quick = False,
    output: cli.Output = None,
    data: cli.Data = None,
):
    """Train a character language model and its dense twin, and generate."""
    options = cli.Options("language_model", backend, seeds, quick, output, data)
    raise typer.Exit(twins.run(options, (), make_tasks, [SOURCE]))


if __name__ == "__main__":
    typer.run(main)
