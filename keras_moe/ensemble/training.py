"""Training the members of an ensemble one by one.

M members, N samples.
"""

import keras
import numpy as np


def fit_members(
    ensemble, x, y, bootstrap: bool, seed: int | None, **kwargs
) -> list[keras.callbacks.History]:
    """Fits each member; see `Ensemble.fit_members`."""
    if bootstrap:
        check_arrays(x, y)
    histories = []
    for number, member in enumerate(ensemble.members):
        if seed is not None:
            keras.utils.set_random_seed(seed + number)
        compile_member(ensemble, member.model)
        data, options = _own_data(member, x, y, kwargs)
        if bootstrap:
            rng = np.random.default_rng(None if seed is None else seed + number)
            data, options = resample(rng, data, options)
        histories.append(member.model.fit(*data, **options))
    return histories


def _own_data(member, x, y, kwargs):
    """Returns data and options of `fit` with the member's own inputs."""
    validation = kwargs.get("validation_data")
    if isinstance(validation, (tuple, list)):
        inputs, *rest = validation
        validation = (member.own_inputs(inputs), *rest)
        kwargs = {**kwargs, "validation_data": validation}
    return (member.own_inputs(x), y), kwargs


def resample(rng, data, options):
    """Draws N of N samples with replacement (Breiman 1996, "Bagging")."""
    num_samples = keras.tree.flatten(data)[0].shape[0]
    rows = rng.integers(num_samples, size=num_samples)

    def draw(array):
        return np.asarray(array)[rows]

    weights = options.get("sample_weight")
    if weights is not None:
        options = {**options, "sample_weight": draw(weights)}
    return keras.tree.map_structure(draw, data), options


def check_arrays(x, y) -> None:
    """Raises where the data are not arrays that can be drawn from."""
    arrays = keras.tree.flatten((x, y))
    if all(hasattr(a, "shape") and len(a.shape) for a in arrays):
        return
    raise ValueError(
        "`bootstrap` must be False where the data are not arrays: samples are "
        f"drawn by their number. Received: x of type {type(x).__name__}, y of "
        f"type {type(y).__name__}. Pass arrays, or draw in the data pipeline "
        "and fit each of `ensemble.models`."
    )


def compile_member(ensemble, model: keras.Model) -> None:
    """Compiles a model as the ensemble is, where it is not compiled.

    Raises:
        ValueError: where neither is, or the ensemble's loss is of
            probabilities and the member gives logits.
    """
    if model.compiled:
        return
    if ensemble.from_logits or not ensemble.compiled:
        reason = (
            "the ensemble's loss is of probabilities, theirs of logits"
            if ensemble.from_logits
            else "the ensemble is not compiled either"
        )
        raise ValueError(
            f"The members must be compiled: {reason}. Received: model "
            f"{model.name!r}, not compiled. Call its `compile(optimizer, "
            "loss)` before."
        )
    model.compile_from_config(ensemble.get_compile_config())
