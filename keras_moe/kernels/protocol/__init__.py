"""What a backend provides to `kernels`: the one list of it.

`kernels/jax/`, `kernels/tensorflow/`, and `kernels/torch/` each provide every
function of `Backend` from their `__init__.py`. A backend that does not write a
function itself imports the default there from `generic.py`, which is written
in plain `keras.ops`.

T tokens, D width, E experts or groups, K top_k, P routed pairs (rows).
"""

from collections.abc import Mapping
from typing import Any, Protocol

from keras_moe.kernels.protocol.exchange import Exchange
from keras_moe.kernels.protocol.layer_hooks import LayerHooks
from keras_moe.kernels.protocol.row_ops import RowOps
from keras_moe.kernels.protocol.tracing import Tracing
from keras_moe.kernels.quantized import QuantizedKernel
from keras_moe.kernels.reference import FFNWeights
from keras_moe.types import Activation, Tensor


class Formulation(Protocol):
    """A module with one way to compute the grouped kernels.

    `kernels.grouped_matmul` and `kernels.grouped_ffn` describe the functions.
    """

    def grouped_matmul(
        self, x: Tensor, kernel: Tensor, group_sizes: Tensor
    ) -> Tensor: ...

    def grouped_ffn(
        self,
        x: Tensor,
        weights: FFNWeights,
        group_sizes: Tensor,
        activation: Activation,
        remat: bool = False,
    ) -> Tensor: ...


class QuantizedFormulation(Protocol):
    """A module with the same functions for kernels of 8 or 4 bits."""

    def grouped_matmul(
        self, x: Tensor, kernel: QuantizedKernel, group_sizes: Tensor
    ) -> Tensor: ...

    def grouped_ffn(
        self,
        x: Tensor,
        weights: FFNWeights,
        group_sizes: Tensor,
        activation: Activation,
    ) -> Tensor: ...


class Backend(RowOps, Tracing, LayerHooks, Exchange, Protocol):
    """The functions of a backend's folder.

    Attributes:
        FORMULATIONS: The formulations by name, without the reference.
        light_ops: `keras.ops`, or functions with the same names that check
            less before each operation, for operations of every call.
    """

    @property
    def FORMULATIONS(self) -> Mapping[str, Formulation]: ...

    @property
    def light_ops(self) -> Any: ...

    def formulation_for(self, x: Tensor, num_groups: int) -> str:
        """Return the name of the formulation for rows `x` `(P, D)`.

        It depends on the device and on sizes that are known when the call is
        traced.
        """

    def quantized_formulation(self) -> QuantizedFormulation:
        """Return the module for kernels of 8 or 4 bits.

        `kernels.use` can force formulations that have no such module.
        """

    def light_activation(self, activation: Activation) -> Activation:
        """Return an activation with the same values and gradients.

        It may take less time than the given one, and keep fewer tensors for
        its gradient.
        """
