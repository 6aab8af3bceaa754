"""Models of which training updates only some of the layers inside."""

from typing import Any

import keras


class PartlyTrained:
    """Mixin: only the variables of `_trained_layers` train.

    The optimizer gets those of them that are trainable. All other variables
    count as not trainable, whatever the flags of their layers are.
    """

    trainable: bool
    variables: list[Any]
    weights: list[Any]

    def _trained_layers(self) -> list[keras.layers.Layer]:
        """Return the layers inside the model that training updates."""
        raise NotImplementedError

    @property
    def trainable_variables(self) -> list[Any]:
        """The trainable variables of `_trained_layers`."""
        return self._trained_of(self.variables)

    @property
    def trainable_weights(self) -> list[Any]:
        """The trainable weights of `_trained_layers`."""
        return self._trained_of(self.weights)

    @property
    def non_trainable_variables(self) -> list[Any]:
        """All other variables, random states included."""
        return _without(self.variables, self.trainable_variables)

    @property
    def non_trainable_weights(self) -> list[Any]:
        """All other weights."""
        return _without(self.weights, self.trainable_weights)

    def _trained_of(self, variables: list[Any]) -> list[Any]:
        if not self.trainable:
            return []
        trained = {id(v) for x in self._trained_layers() for v in x.variables}
        return [v for v in variables if v.trainable and id(v) in trained]


def _without(variables: list[Any], others: list[Any]) -> list[Any]:
    known = {id(variable) for variable in others}
    return [v for v in variables if id(v) not in known]
