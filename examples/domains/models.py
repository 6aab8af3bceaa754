"""Build and train the experts, the mixtures of them, and the single model.

B batch, S words per question.
"""

import keras

import keras_moe
from domains.questions import MOST_WORDS

WIDTH = 64
DROPOUT = 0.4
BATCH_SIZE = 128
NUM_INTENTS = 150
NUM_DOMAINS = 10
KINDS = ("convolution", "lstm", "transformer")


def encoder(kind, vocabulary_size):
    """Return a model from word ids `(B, S)` to a vector per question."""
    ids = keras.Input((MOST_WORDS,), dtype="int32")
    mask = keras.ops.not_equal(ids, 0)
    x = keras.layers.Embedding(vocabulary_size, WIDTH)(ids)
    x = keras.layers.Dropout(DROPOUT)(x)
    parts = [_mean(x, mask)]
    if kind != "bag":
        parts.append(ENCODERS[kind](x, mask))
    if len(parts) > 1:
        parts = [keras.layers.concatenate(parts)]
    return keras.Model(ids, parts[0])


def _mean(x, mask):
    return keras.layers.GlobalAveragePooling1D()(x, mask=mask)


def _convolution(x, mask):
    convolution = keras.layers.Conv1D(
        2 * WIDTH, 3, padding="same", activation="relu"
    )
    return keras.layers.GlobalMaxPooling1D()(convolution(x))


def _lstm(x, mask):
    lstm = keras.layers.LSTM(2 * WIDTH, return_sequences=True)
    return _mean(lstm(x, mask=mask), mask)


def _transformer(x, mask):
    block = keras_moe.TransformerEncoderBlock(
        4, keras_moe.Expert(2 * WIDTH), dropout=0.1, rotary=True
    )
    return _mean(block(x, mask=mask), mask)


ENCODERS = {
    "convolution": _convolution,
    "lstm": _lstm,
    "transformer": _transformer,
}


def classifier(encoded, inputs):
    """Return a model that outputs the probabilities of the intents."""
    x = keras.layers.Dropout(DROPOUT)(encoded)
    outputs = keras.layers.Dense(NUM_INTENTS, activation="softmax")(x)
    return keras.Model(inputs, outputs)


def make_experts(kinds, vocabulary_size):
    """Return one expert per domain; the kinds alternate."""
    experts = []
    for domain in range(NUM_DOMAINS):
        body = encoder(kinds[domain % len(kinds)], vocabulary_size)
        experts.append(classifier(body.output, body.input))
    return experts


def make_single(kind, vocabulary_size):
    """Return one model with the architecture that a question passes through.

    It consists of the encoder of the router and that of an expert, side by
    side.
    """
    ids = keras.Input((MOST_WORDS,), dtype="int32")
    parts = [encoder(k, vocabulary_size)(ids) for k in ("bag", kind)]
    return classifier(keras.layers.concatenate(parts), ids)


def by_domain(experts):
    """Return the mixture that is given the domain of each question."""
    mixture = keras_moe.MixtureOfModels(
        experts, router=keras_moe.RuleRouter(NUM_DOMAINS)
    )
    ids = keras.Input((MOST_WORDS,), dtype="int32")
    domain = keras.Input((), dtype="int32")
    return keras.Model([ids, domain], mixture(ids, router_inputs=domain))


def all_weighed(experts, vocabulary_size):
    """Return the mixture that learns to weight all experts."""
    return keras_moe.MixtureOfModels(
        experts, features=encoder("bag", vocabulary_size)
    )


def one_chosen(mixture):
    """Return the mixture with the same weights that runs one expert."""
    sparse = keras_moe.MixtureOfModels(
        mixture.experts.layers,
        router=keras_moe.Router(NUM_DOMAINS, 1),
        features=mixture.features,
    )
    sparse.build((None, MOST_WORDS))
    sparse.router.set_weights(mixture.router.get_weights())
    return sparse


def expert_of(mixture, words):
    """Return the expert that each question is sent to."""
    inputs = keras.Input((MOST_WORDS,), dtype="int32")
    _, assignment = mixture(inputs, return_assignment=True)
    choice = keras.Model(inputs, assignment.expert_index)
    return choice.predict(words, batch_size=len(words), verbose=0)


def train_by_domain(experts, questions, epochs):
    """Train each expert only on the questions of its own domain."""
    for domain, expert in enumerate(experts):
        own = questions.domain == domain
        fit(expert, questions.words[own], questions.intent[own], epochs)


def freeze(experts):
    """Freeze the experts."""
    for expert in experts:
        expert.trainable = False


def fit(model, inputs, targets, epochs, learning_rate=4e-3):
    """Train with Adam and a cosine schedule."""
    steps = epochs * -(-len(targets) // BATCH_SIZE)
    rate = keras.optimizers.schedules.CosineDecay(learning_rate, steps)
    model.compile(
        keras.optimizers.Adam(rate), "sparse_categorical_crossentropy"
    )
    model.fit(inputs, targets, batch_size=BATCH_SIZE, epochs=epochs, verbose=0)
