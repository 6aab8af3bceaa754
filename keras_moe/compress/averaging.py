"""Which experts are alike, and what is their mean. NumPy alone.

E experts, D hidden_dim, F intermediate_dim, R tokens, M merged experts.

An expert is a dict of arrays by name: `up_kernel` `(D, F)`, `up_bias` `(F,)`,
`down_kernel` `(F, H)`, `down_bias` `(H,)` and maybe `gate_kernel` and
`gate_bias`.
"""

import numpy as np

HIDDEN_AXES = {
    "up_kernel": 1,
    "gate_kernel": 1,
    "up_bias": 0,
    "gate_bias": 0,
    "down_kernel": 0,
}
Weights = dict[str, np.ndarray]


def distances(features: np.ndarray) -> np.ndarray:
    """Returns the Euclidean distances of rows `(E, n)`, `(E, E)`."""
    return np.stack(
        [np.linalg.norm(features - row, axis=1) for row in features]
    )


def cluster(apart: np.ndarray, number: int) -> list[list[int]]:
    """Joins the two nearest groups until `number` are left.

    Agglomerative clustering with average linkage (of experts: Chen et al.
    2024, "Retraining-Free Merging of Sparse Mixture-of-Experts via
    Hierarchical Clustering"). Of equal distances the first pair is joined.

    Args:
        apart: `(E, E)`, distances.
        number: M.

    Returns:
        Groups of experts, each in order, by their first members.
    """
    groups = [[e] for e in range(len(apart))]
    while len(groups) > number:
        pairs = [
            (float(apart[np.ix_(one, other)].mean()), i, j)
            for i, one in enumerate(groups)
            for j, other in enumerate(groups)
            if i < j
        ]
        _, i, j = min(pairs)
        groups[i] = sorted(groups[i] + groups.pop(j))
    return groups


def aligned(expert: Weights, reference: Weights) -> Weights:
    """Reorders an expert's hidden units to match another's.

    A network does not change with the order of its hidden units; a mean of
    two networks does. The permutation maximises the sum of inner products of
    what comes into and goes out of the units that are put side by side
    (Ainsworth et al. 2023, "Git Re-Basin", section 3.2, weight matching; Li et
    al. 2024 align experts so before they merge them).

    Args:
        expert, reference: of the same shapes.

    Raises:
        ImportError: without SciPy.
    """
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise ImportError(
            "`merge_experts` aligns experts with SciPy, which is not "
            'installed. Run: pip install "keras-moe[compress]"'
        ) from error
    likeness = sum(
        _units(reference, name) @ _units(expert, name).T
        for name in HIDDEN_AXES
        if name in expert
    )
    _, order = linear_sum_assignment(likeness, maximize=True)
    return take_units(expert, order)


def _units(expert, name):
    """A weight with a row for each hidden unit, `(F, n)`."""
    weight = np.moveaxis(expert[name], HIDDEN_AXES[name], 0)
    return weight.reshape(len(weight), -1).astype("float64")


def take_units(expert: Weights, units: np.ndarray) -> Weights:
    """Returns an expert of some of the hidden units, in their order."""
    return {
        name: np.take(weight, units, HIDDEN_AXES[name])
        if name in HIDDEN_AXES
        else weight
        for name, weight in expert.items()
    }


def mean_expert(experts: list[Weights], shares: np.ndarray) -> Weights:
    """Returns the weighted mean of experts, aligned to the weightiest.

    Args:
        experts: of the same shapes.
        shares: one a expert, 0 or above; all zero counts as equal.
    """
    shares = np.asarray(shares, "float64")
    if not shares.any():
        shares = np.ones(len(experts))
    shares = shares / shares.sum()
    reference = experts[int(np.argmax(shares))]
    experts = [e if e is reference else aligned(e, reference) for e in experts]
    return {
        name: sum(
            share * e[name] for share, e in zip(shares, experts, strict=True)
        ).astype("float32")
        for name in reference
    }
