"""A bank of experts that are layers or models of any kind.

E experts, P routed pairs.
"""

import inspect
from collections.abc import Sequence

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
    """E layers, not necessarily alike, called as `Expert` is.

    Each runs on the rows that were sent to it, and one without rows does not
    run. On JAX, whose programs know all shapes, an expert runs on 1.25 or 2.5
    times its even share of the rows, or on all, whichever holds its rows
    first; what is missing are copies of its last row. TensorFlow under
    `jit_compile=True` runs every expert on all rows. An expert that looks
    across its batch (batch normalisation, a balance loss) sees these copies.

    Args:
        layers: list of E layers or models from rows `(P, ...)` to outputs of
            one structure and shape.
        **kwargs: of `keras.layers.Layer`.

    Call arguments:
        rows: nest of `(P, ...)`, sorted by expert.
        group_sizes: int32 `(E,)`, rows of each expert.
        training: bool. Outside training, what an expert draws or counts in
            its weights is not kept.
        mask: bool `(P, ...)`, passed on to the experts that take one.
        most_rows: int, rows that no expert has more of, or None.

    Returns:
        The experts' outputs `(P, ...)`, zero behind the last group.

    Raises:
        ValueError: for what is no list of layers, a layer that stands in it
            twice, or outputs of different shapes.

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

    def __init__(self, layers: Sequence, **kwargs):
        # The layers have dtype policies of their own; nothing is cast here.
        super().__init__(autocast=False, **{"dtype": "float32", **kwargs})
        self.supports_masking = True
        kernels.keep_losses_apart(self)
        self.layers = _check_layers(layers)
        sharing.own(self, *self.layers)
        self.num_experts = len(self.layers)
        self._specs: dict = {}

    def build(self, rows_shape) -> None:
        """Creates the weights of the layers that have none yet."""
        for layer in self.layers:
            if not layer.built:
                layer.build(rows_shape)

    def call(
        self,
        rows,
        group_sizes: Tensor,
        training=None,
        mask: Tensor | None = None,
        most_rows: int | None = None,
    ):
        """Runs each expert on its rows; see the class."""
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
        self, inputs, mask: Tensor | None = None, training=None
    ) -> list:
        """Returns what each expert gives for all of the inputs."""
        outputs = [
            layer(inputs, training=training, **mask_for(layer, mask))
            for layer in self.layers
        ]
        spec = self.compute_output_spec(inputs)
        return [_cast_like(spec, output) for output in outputs]

    def compute_output_spec(self, rows, *args, **kwargs):
        """Returns the symbolic outputs, the same for all experts."""
        key = str([(x.shape[1:], x.dtype) for x in tree.flatten(rows)])
        if key not in self._specs:
            symbolic = tree.map_structure(
                lambda x: keras.KerasTensor((None, *x.shape[1:]), x.dtype), rows
            )
            self._specs[key] = _common_spec(
                [layer.compute_output_spec(symbolic) for layer in self.layers]
            )
        return self._specs[key]

    def compute_mask(self, rows, mask=None) -> None:
        """Returns None: rows go back to where they came from."""
        return None

    def get_config(self) -> dict:
        """Returns the arguments that build this layer again."""
        layers = [sharing.serialize_part(layer, self) for layer in self.layers]
        return {**super().get_config(), "layers": layers}

    @classmethod
    def from_config(cls, config: dict):
        """Builds the layer that `get_config` describes."""
        return cls(**sharing.deserialize_parts(config, "layers"))


def _function(layer, kept_variables, spec, training):
    """The layer as a pure function of rows and of `(kept values, loss)`.

    A branch that may not be taken must leave no trace outside of it: what
    the layer assigns and adds to the loss comes back as values.
    """
    kept_ids = {id(v) for v in kept_variables}
    fixed = [(v, v.value) for v in layer.variables if id(v) not in kept_ids]

    def run(operands, state, real):
        mask = operands[1] if len(operands) > 1 else None
        kept = list(zip(kept_variables, state[0], strict=True))
        scope = keras.StatelessScope(fixed + kept, collect_losses=True)
        with own_trace(), scope:
            with only_real_rows(layer, real):
                outputs = layer(
                    operands[0], training=training, **mask_for(layer, mask)
                )
            losses = [in_floatx(x) for x in scope.losses]
            _keras.clear_losses(layer)  # they come back as one
        values = [scope.get_current_value(v) for v in kept_variables]
        return _cast_like(spec, outputs), (values, sum(losses, _no_loss()))

    return run


def _no_loss():
    return ops.zeros((), keras.config.floatx())


def mask_for(layer, mask: Tensor | None) -> dict:
    """Returns the `mask` argument of a layer that takes one, or nothing."""
    if mask is None or "mask" not in inspect.signature(layer.call).parameters:
        return {}
    return {"mask": mask}


def _cast_like(spec, outputs):
    return tree.map_structure(lambda s, x: ops.cast(x, s.dtype), spec, outputs)


def _common_spec(specs):
    """One spec for all experts, float32 where their dtypes differ."""
    first = specs[0]
    for index, other in enumerate(specs[1:], start=1):
        same = tree.map_structure(lambda s: s.shape, first)
        if str(same) != str(tree.map_structure(lambda s: s.shape, other)):
            raise ValueError(
                "`experts` must give outputs of one structure and shape. "
                f"Received: {first} from expert 0, {other} from expert "
                f"{index}. End each expert in a layer of the same width."
            )

    def common(*leaves):
        dtypes = {leaf.dtype for leaf in leaves}
        dtype = dtypes.pop() if len(dtypes) == 1 else "float32"
        return keras.KerasTensor(leaves[0].shape, dtype)

    return tree.map_structure(common, *specs)


def _check_layers(layers):
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
            "`experts` must be different layers: one that stands in the list "
            "twice would be one expert with two numbers. Received: "
            f"{[layer.name for layer in layers]}. Build a layer for each."
        )
    return list(layers)
