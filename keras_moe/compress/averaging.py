"""Group experts by distance and average them, in NumPy.

E experts, D hidden_dim, F intermediate_dim, H output width, M merged experts.

An expert is a dict from names to arrays: `up_kernel` `(D, F)`, `up_bias`
`(F,)`, `down_kernel` `(F, H)`, `down_bias` `(H,)`, and, if it is gated,
`gate_kernel` and `gate_bias`.
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
    """Return the Euclidean distances `(E, E)` of rows `(E, n)`."""
    return np.stack(
        [np.linalg.norm(features - row, axis=1) for row in features]
    )


def cluster(apart: np.ndarray, number: int) -> list[list[int]]:
    """Join the two nearest groups of experts until `number` are left.

    This is agglomerative clustering with average linkage. Of equal distances,
    the first pair is joined.

    Reference: Chen et al. 2024, "Retraining-Free Merging of Sparse
    Mixture-of-Experts via Hierarchical Clustering".

    Args:
        apart: float `(E, E)`. Distances.
        number: int in 1 ... E. M.

    Returns:
        A list of groups of experts, in the order of their first members. Each
        group is sorted.
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
    """Return an expert with its hidden units in the order of another's.

    The order of its hidden units does not change a network, but it changes the
    mean of two networks. The permutation maximizes the sum of the inner
    products of incoming and of outgoing weights of the matched units.

    Reference: Ainsworth et al. 2023, "Git Re-Basin", section 3.2 (weight
    matching). Li et al. 2024 align experts in this way before they merge them.

    Args:
        expert: Dict of arrays.
        reference: Dict of arrays with the same names and shapes.

    Raises:
        ImportError: If SciPy is not installed.
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


def _units(expert: Weights, name: str) -> np.ndarray:
    """Return a weight with a row per hidden unit, `(F, n)`."""
    weight = np.moveaxis(expert[name], HIDDEN_AXES[name], 0)
    rows: np.ndarray = weight.reshape(len(weight), -1).astype("float64")
    return rows


def take_units(expert: Weights, units: np.ndarray) -> Weights:
    """Return an expert with some of its hidden units, in the given order."""
    return {
        name: np.take(weight, units, HIDDEN_AXES[name])
        if name in HIDDEN_AXES
        else weight
        for name, weight in expert.items()
    }


def mean_expert(experts: list[Weights], shares: np.ndarray) -> Weights:
    """Return the weighted mean of experts, aligned to that of largest weight.

    Args:
        experts: List of dicts of arrays with the same names and shapes.
        shares: float, one per expert, 0 or above. Weights of the mean. If all
            are zero, the experts have equal weights.

    Raises:
        ImportError: If there are several experts and SciPy is not installed.
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
