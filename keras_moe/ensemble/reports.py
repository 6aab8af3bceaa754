"""Outputs, diversity, and weights of the members of an ensemble.

M members, N samples, C classes (or values).
"""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_moe.ensemble import combiners, diversity
from keras_moe.ensemble.members import Member


class MemberReports:
    """Mixin: report on the members of an ensemble."""

    members: list[Member]
    combiner: combiners.Combiner
    method: str
    from_logits: bool
    regression: bool

    @property
    def models(self) -> list[keras.Model]:
        """The members' models, in order."""
        return [member.model for member in self.members]

    def predict_members(self, x: Any, **kwargs: Any) -> np.ndarray:
        """Return the outputs of each member.

        Args:
            x: Data as `keras.Model.predict` takes them.
            **kwargs: Arguments of `keras.Model.predict`.

        Returns:
            Array `(M, N, ..., C)`.
        """
        return np.stack(
            [m.model.predict(m.own_inputs(x), **kwargs) for m in self.members]
        )

    def diversity(self, x: Any, y: Any, **kwargs: Any) -> dict[str, float]:
        """Return how far the members' mistakes differ, as means over pairs.

        Args:
            x: Data as `keras.Model.predict` takes them.
            y: int `(N, ...)` or `(N, ..., 1)`, or one-hot `(N, ..., C)`.
                Labels.
            **kwargs: Arguments of `keras.Model.predict`.

        Returns:
            A dict of `disagreement`, `q_statistic`, and `double_fault`, as the
            functions of these names in `keras_moe.ensemble` compute them.

        Raises:
            ValueError: If the ensemble is one for regression, or if the shape
                of the labels does not fit the outputs.
        """
        if self.regression:
            raise ValueError(
                "`diversity` needs an ensemble of classifiers, whose outputs "
                "are right or wrong. Received: regression=True. Compare "
                "`predict_members(x)`."
            )
        outputs = self.predict_members(x, **kwargs)
        correct = diversity.is_correct(outputs, y, self.from_logits)
        return {
            measure.__name__: diversity.mean_over_pairs(measure(correct))
            for measure in (
                diversity.disagreement,
                diversity.q_statistic,
                diversity.double_fault,
            )
        }

    def member_weights(self) -> np.ndarray:
        """Return the learned weights of `"weighted"`, float32 `(M,)`.

        They are above 0 and sum to 1.

        Raises:
            ValueError: If the method is not `"weighted"`.
        """
        if isinstance(self.combiner, combiners.WeightedMean):
            weights: np.ndarray = ops.convert_to_numpy(
                self.combiner.member_weights()
            )
            return weights
        raise ValueError(
            "`member_weights` needs method='weighted': other methods have no "
            f"weights. Received: method={self.method!r}. Build an ensemble "
            "with method='weighted'."
        )
