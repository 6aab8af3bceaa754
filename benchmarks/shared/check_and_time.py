"""Check contestants against the reference, then time them in turns.

T tokens, D hidden_dim.
"""

import gc
import math
import re
import sys

import keras
import numpy as np

from benchmarks.shared import timing
from benchmarks.shared.numpy_reference import reference
from benchmarks.shared.timed_calls import BACKEND, KINDS, to_numpy

# Relative to the largest value; bfloat16 has eight bits of precision.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.06}


def measure_cell(contestants, kinds=KINDS, quick=False, pinned=False, **labels):
    """Check the contestants, and time those with correct results.

    Args:
        contestants: list of `Contestant`. The first one is `limit`.
        kinds: The calls to time, in the order of `timed_calls.KINDS`. A
            contestant whose `forward` is wrong is not timed in the others.
        quick: bool. Whether to run few rounds.
        pinned: bool. Whether to measure CPU time instead of wall time.
        **labels: Part, shape, and so on, for every record.

    Returns:
        list of dicts, one record per contestant and kind.
    """
    clock = timing.clock_of(pinned)
    limits = timing.QUICK if quick else timing.FULL
    references, wrong, records = {}, {}, []
    for kind in kinds:
        calls, firsts = {}, {}
        for c in contestants:
            if kind not in c.kinds or c.name in wrong:
                continue
            status, call, seconds = check(c, kind, references)
            if status == "ok":
                calls[c.name], firsts[c.name] = call, seconds
            else:
                wrong[c.name] = status
                records.append(_record(labels, kind, c.name, status=status))
        times = timing.interleave(calls, contestants[0].name, limits, clock)
        for name in times:
            figures = _figures(times, name, firsts[name])
            records.append(_record(labels, kind, name, **figures))
        _print_progress(labels, kind, records)
        del calls
        gc.collect()
    return records


def forget():
    """Free the backend's caches of the previous models."""
    keras.backend.clear_session()
    if BACKEND == "jax":
        import jax

        jax.clear_caches()
    if BACKEND == "torch":
        import torch

        torch.compiler.reset()  # else the next shape is compiled as dynamic
    gc.collect()


def check(contestant, kind, references):
    """Return the verdict, the function to time, and the first call's time."""
    try:
        call = contestant.call(kind)
        results = []
        seconds = timing.first_call(lambda: results.append(call()))
    except Exception as error:  # the failure of a library is a result, too
        return f"fails: {type(error).__name__}: {_brief(error)}", None, 0.0
    if contestant.is_limit or kind == "train":
        return "ok", call, seconds
    problem = contestant.problem
    if id(problem) not in references:
        references[id(problem)] = reference(problem)
    expected = references[id(problem)]
    return verdict(kind, results[0], expected, problem.dtype), call, seconds


def verdict(kind, result, expected, dtype):
    """Compare a result with the naive reference.

    Args:
        kind: `"forward"`, or `"f+b"`, which compares the gradient of the inputs
            and the norm of the gradients of all weights, in any layout.
        result: The return value of the contestant's call.
        expected: `numpy_reference.Reference`.
        dtype: str. Selects the tolerance.

    Returns:
        `"ok"`, or a text that describes the difference. A contestant that
        drops tokens or differs is not timed.
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
    """Return the message of an error, without the text that Keras adds."""
    text = re.sub(r"\x1b\[\d*m", "", str(error))
    text = re.sub(r"Exception encountered when calling \S+\s*", "", text)
    return " ".join(text.split("Arguments received by")[0].split())[:100]


def _figures(times, name, first):
    """Return the figures of a contestant that was timed."""
    figures = {"status": "ok", "first_call": first, "rounds": len(times[name])}
    figures["seconds"] = float(np.median(times[name]))
    for base in ("limit", "limitE", "keras_moe"):
        if base in times:
            ratio = timing.ratio(times[name], times[base])
            figures[f"to_{base}"] = list(ratio)
    return figures


def _record(labels, kind, name, **figures):
    return {**labels, "kind": kind, "name": name, **figures}


def _print_progress(labels, kind, records):
    """Print one line per contestant to stderr, as it finishes."""
    where = " ".join(str(value) for value in labels.values())
    for r in records:
        if r["kind"] == kind:
            if r["status"] == "ok":
                text = f"{r['to_limit'][0]:6.2f}  {r['seconds'] * 1e3:9.2f} ms"
            else:
                text = r["status"]
            print(f"{where} {kind} {r['name']}: {text}", file=sys.stderr)
