"""Bank of experts that are layers or models of any kind.

E experts, P routed pairs.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Self

import keras
from keras import ops, tree

from keras_moe import _keras, kernels
from keras_moe.layers import sharing
from keras_moe.layers.added_losses import in_floatx
from keras_moe.layers.argument_names import NamedArguments
from keras_moe.layers.moe_layer import MoELayer
from keras_moe.layers.real_rows import only_real_rows
from keras_moe.layers.traces import own_trace
from keras_moe.types import Tensor


@keras.saving.register_keras_serializable(package="keras_moe")
class ExpertLayers(NamedArguments, MoELayer):
    """Runs E layers of any kind, each on its rows, called like `Expert`.

    An expert without rows does not run. On JAX, where all shapes are static, an
    expert runs on the first of three sizes that holds its rows: 1.25 or 2.5
    times its even share, or all rows. The remainder is padded with copies of
    its last row. TensorFlow with `jit_compile=True` runs every expert on all
    rows. The copies affect experts that compute statistics over their batch
    (batch normalization, a balance loss).

    Args:
        layers: List of E layers or models from rows `(P, ...)` to outputs of
            the same structure and shape.
        **kwargs: Arguments of `keras.layers.Layer`.

    Call arguments:
        rows: Nest of tensors `(P, ...)`, sorted by expert.
        group_sizes: Int32 tensor of shape `(E,)`, rows per expert.
        training: Bool. Outside training, the non-trainable variables of the
            experts do not change.
        mask: Bool tensor of shape `(P, ...)`, passed to the experts that
            accept a mask, or None.
        most_rows: Int. Upper bound of the rows per expert, or None.

    Returns:
        The outputs of the experts, `(P, ...)`, zero after the last group.

    Raises:
        ValueError: If `layers` is not a list of layers, if a layer is in it
            twice, or if the outputs have different structures or shapes.

    Example:

    ```python
    experts = [
        keras.layers.Dense(16, activation="relu"),
        keras.Sequential([keras.layers.Dense(8), keras.layers.Dense(16)]),
    ]
    block = keras_moe.MoEBlock(experts=experts, top_k=1)
    outputs = block(keras.random.normal((2, 5, 16)))
    ```
    """

    fixed_arguments = ("autocast",)

    def __init__(self, layers: Sequence[keras.layers.Layer], **kwargs: Any):
        # The layers have their own dtype policies; nothing is cast here.
        super().__init__(autocast=False, **{"dtype": "float32", **kwargs})
        self.supports_masking = True
        kernels.keep_losses_apart(self)
        self.layers = _check_layers(layers)
        sharing.own(self, *self.layers)
        self.num_experts = len(self.layers)
        self._specs: dict[str, Any] = {}

    def build(self, rows_shape: Any) -> None:
        """Create the weights of the layers that are not built yet."""
        for layer in self.layers:
            if not layer.built:
                layer.build(rows_shape)

    def call(
        self,
        rows: Any,
        group_sizes: Tensor,
        training: bool | None = None,
        mask: Tensor | None = None,
        most_rows: int | None = None,
    ) -> Any:
        """Run each expert on its rows; see the class."""
        spec = self.compute_output_spec(rows)
        keep = [layer.non_trainable_variables for layer in self.layers]
        if not training:
            keep = [[] for _ in self.layers]
        outputs, states = kernels.map_groups(
            [
                _function(layer, variables, spec, training)
                for layer, variables in zip(self.layers, keep, strict=True)
            ],
            (rows,) if mask is None else (rows, mask),
            group_sizes,
            [([v.value for v in variables], _no_loss()) for variables in keep],
            spec,
            [[v.value for v in x.trainable_variables] for x in self.layers],
            most_rows,
        )
        for variables, (values, loss) in zip(keep, states, strict=True):
            for variable, value in zip(variables, values, strict=True):
                # On PyTorch, a frozen kernel must not be written in place.
                if value is not variable.value:
                    kernels.assign_once(variable, value)
            if training:
                self.add_loss(loss)
        return outputs

    def run_all(
        self,
        inputs: Any,
        mask: Tensor | None = None,
        training: bool | None = None,
    ) -> list[Any]:
        """Return the outputs of each expert for all inputs."""
        outputs = [
            layer(inputs, training=training, **mask_for(layer, mask))
            for layer in self.layers
        ]
        spec = self.compute_output_spec(inputs)
        return [_cast_like(spec, output) for output in outputs]

    def compute_output_spec(self, rows: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the symbolic outputs, which are the same for all experts."""
        key = str([(x.shape[1:], x.dtype) for x in tree.flatten(rows)])
        if key not in self._specs:
            symbolic = tree.map_structure(
                lambda x: keras.KerasTensor((None, *x.shape[1:]), x.dtype), rows
            )
            self._specs[key] = _common_spec(
                [layer.compute_output_spec(symbolic) for layer in self.layers]
            )
        return self._specs[key]

    def compute_mask(self, rows: Any, mask: Any = None) -> None:
        """Return None: rows sorted by expert have no mask."""
        return None

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that build this layer again."""
        layers = [sharing.serialize_part(layer, self) for layer in self.layers]
        return {**super().get_config(), "layers": layers}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Build the layer that `get_config` describes."""
        return cls(**sharing.deserialize_parts(config, "layers"))


def _function(
    layer: keras.layers.Layer,
    kept_variables: list[keras.Variable],
    spec: Any,
    training: bool | None,
) -> Callable[..., tuple[Any, tuple[list[Tensor], Tensor]]]:
    """Return the layer as a pure function of rows and `(kept values, loss)`.

    A branch that may not be taken must have no side effects: assigned values
    and added losses are returned.
    """
    kept_ids = {id(v) for v in kept_variables}
    fixed = [(v, v.value) for v in layer.variables if id(v) not in kept_ids]

    def run(
        operands: tuple[Any, ...],
        state: tuple[list[Tensor], Tensor],
        real: Tensor | None,
    ) -> tuple[Any, tuple[list[Tensor], Tensor]]:
        mask = operands[1] if len(operands) > 1 else None
        kept = list(zip(kept_variables, state[0], strict=True))
        scope = keras.StatelessScope(fixed + kept, collect_losses=True)
        with own_trace(), scope:
            with only_real_rows(layer, real):
                outputs = layer(
                    operands[0], training=training, **mask_for(layer, mask)
                )
            losses = [in_floatx(x) for x in scope.losses]
            _keras.clear_losses(layer)  # their sum is returned
        values = [scope.get_current_value(v) for v in kept_variables]
        return _cast_like(spec, outputs), (values, sum(losses, _no_loss()))

    return run


def _no_loss() -> Tensor:
    return ops.zeros((), keras.config.floatx())


def mask_for(
    layer: keras.layers.Layer, mask: Tensor | None
) -> dict[str, Tensor]:
    """Return `{"mask": mask}` for a layer that accepts it, else `{}`."""
    if mask is None or "mask" not in inspect.signature(layer.call).parameters:
        return {}
    return {"mask": mask}


def _cast_like(spec: Any, outputs: Any) -> Any:
    return tree.map_structure(lambda s, x: ops.cast(x, s.dtype), spec, outputs)


def _common_spec(specs: list[Any]) -> Any:
    """Return one spec for all experts, float32 if their dtypes differ."""
    first = specs[0]
    for index, other in enumerate(specs[1:], start=1):
        same = tree.map_structure(lambda s: s.shape, first)
        if str(same) != str(tree.map_structure(lambda s: s.shape, other)):
            raise ValueError(
                "`experts` must give outputs of one structure and shape. "
                f"Received: {first} from expert 0, {other} from expert "
                f"{index}. End each expert with a layer of the same width."
            )

    def common(*leaves: Any) -> keras.KerasTensor:
        dtypes = {leaf.dtype for leaf in leaves}
        dtype = dtypes.pop() if len(dtypes) == 1 else "float32"
        return keras.KerasTensor(leaves[0].shape, dtype)

    return tree.map_structure(common, *specs)


def _check_layers(layers: Any) -> list[keras.layers.Layer]:
    is_list = isinstance(layers, (list, tuple)) and len(layers) > 0
    if not is_list or not all(
        isinstance(layer, keras.layers.Layer) for layer in layers
    ):
        raise ValueError(
            "`experts` (`layers`) must be a list of Keras layers or models. "
            f"Received: {layers!r}. Pass, for instance, [keras.layers.Dense(8),"
            " keras.layers.Identity()]."
        )
    if len({id(layer) for layer in layers}) < len(layers):
        raise ValueError(
            "`experts` must be different layers: a layer that is in the list "
            "twice would be one expert with two indices. Received: "
            f"{[layer.name for layer in layers]}. Build one layer per expert."
        )
    return list(layers)
