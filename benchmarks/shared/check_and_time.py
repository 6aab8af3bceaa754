"""One cell of a table: contestants checked, then timed by turns.

T tokens, D hidden_dim.
"""

import gc
import math
import re
import sys

import keras
import measure
import numpy as np
from calls import BACKEND, KINDS, to_numpy
from problem import reference

# Of the largest value; bfloat16 keeps eight bits.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.06}


def measure_cell(contestants, kinds=KINDS, quick=False, pinned=False, **labels):
    """Checks the contestants and times those that are right.

    Args:
        contestants: list of `Contestant`; the first one is `limit`.
        kinds: what to time, in the order of `calls.KINDS`: an error that
            `forward` shows leaves a contestant out of the rest.
        quick: few rounds. pinned: CPU time instead of wall time.
        **labels: part, shape and so on; they stand in every record.

    Returns:
        list of records (dict), one a contestant and kind.
    """
    clock = measure.clock_of(pinned)
    limits = measure.QUICK if quick else measure.FULL
    references, wrong, records = {}, {}, []
    for kind in kinds:
        calls, firsts = {}, {}
        for c in contestants:
            if kind not in c.kinds or c.name in wrong:
                continue
            status, call, seconds = _prepare(c, kind, references)
            if status == "ok":
                calls[c.name], firsts[c.name] = call, seconds
            else:
                wrong[c.name] = status
                records.append(_record(labels, kind, c.name, status=status))
        times = measure.interleave(calls, contestants[0].name, limits, clock)
        for name in times:
            figures = _figures(times, name, firsts[name])
            records.append(_record(labels, kind, name, **figures))
        _say(labels, kind, records)
        del calls
        gc.collect()
    return records


def forget():
    """Frees what the backend keeps of the models so far."""
    keras.backend.clear_session()
    if BACKEND == "jax":
        import jax

        jax.clear_caches()
    if BACKEND == "torch":
        import torch

        torch.compiler.reset()  # or the next shape compiles for any number
    gc.collect()


def _prepare(contestant, kind, references):
    """Returns the verdict, the function to time, and the first call's time."""
    try:
        call = contestant.call(kind)
        results = []
        seconds = measure.first_call(lambda: results.append(call()))
    except Exception as error:  # a peer's failure is a result, too
        return f"fails: {type(error).__name__}: {_brief(error)}", None, 0.0
    if contestant.is_limit or kind == "train":
        return "ok", call, seconds
    problem = contestant.problem
    if id(problem) not in references:
        references[id(problem)] = reference(problem)
    expected = references[id(problem)]
    return verdict(kind, results[0], expected, problem.dtype), call, seconds


def verdict(kind, result, expected, dtype):
    """Compares a result with the naive reference.

    Args:
        kind: `"forward"`, or `"f+b"`, which compares the inputs' gradient and
            the norm of all weights' gradients, whatever their layout.
        result: of the contestant's call.
        expected: `problem.Reference`.

    Returns:
        `"ok"`; or how many tokens differ: what drops tokens or differs must
        not be timed as equal.
    """
    if kind == "forward":
        return _differing(to_numpy(result), expected.y, dtype)
    y, dx, d_weights = result
    text = _differing(to_numpy(dx), expected.dx, dtype)
    if text != "ok":
        return f"gradient {text}"
    squares = sum(
        np.square(to_numpy(d)).sum(dtype="float64") for d in d_weights
    )
    error = abs(math.sqrt(squares) / expected.norm - 1)
    if not error <= TOLERANCE[dtype]:
        return f"gradient of the weights differs (norm by {error:.1e})"
    return "ok"


def _differing(values, expected, dtype):
    if values.shape != expected.shape:
        return f"differs (shape {values.shape})"
    errors = np.abs(values - expected).max(-1) / np.abs(expected).max()
    share = float((~(errors <= TOLERANCE[dtype])).mean())
    if not share:
        return "ok"
    return f"differs on {share:.1%} of the tokens (max err {errors.max():.1e})"


def _brief(error):
    """The error's own words, without what Keras puts around them."""
    text = re.sub(r"\x1b\[\d*m", "", str(error))
    text = re.sub(r"Exception encountered when calling \S+\s*", "", text)
    return " ".join(text.split("Arguments received by")[0].split())[:100]


def _figures(times, name, first):
    """The record of a contestant that was timed."""
    figures = {"status": "ok", "first_call": first, "rounds": len(times[name])}
    figures["seconds"] = float(np.median(times[name]))
    for base in ("limit", "limitE", "keras_moe"):
        if base in times:
            ratio = measure.ratio(times[name], times[base])
            figures[f"to_{base}"] = list(ratio)
    return figures


def _record(labels, kind, name, **figures):
    return {**labels, "kind": kind, "name": name, **figures}


def _say(labels, kind, records):
    """One line a contestant on stderr, as it is known."""
    where = " ".join(str(value) for value in labels.values())
    for r in records:
        if r["kind"] == kind:
            if r["status"] == "ok":
                text = f"{r['to_limit'][0]:6.2f}  {r['seconds'] * 1e3:9.2f} ms"
            else:
                text = r["status"]
            print(f"{where} {kind} {r['name']}: {text}", file=sys.stderr)
