"""Join token sequences of several modalities.

B batch, S_m length of modality m, S their sum, D hidden_dim, M modalities.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_moe import checks
from keras_moe.layers.argument_names import NamedArguments
from keras_moe.layers.moe_layer import MoELayer
from keras_moe.layers.quantization import KeptInFloats
from keras_moe.types import Shape, Tensor


class ModalityTokens(NamedTuple):
    """Holds the tokens of all modalities, one modality after the other.

    tokens: `(B, S, D)`. Its Keras mask is `mask` if any modality has a mask.
    modality: int32 `(B, S)`, 0 ... M - 1, the `router_inputs` of
        `ModalityRouter`.
    mask: bool `(B, S)`, False for padding.
    """

    tokens: Tensor
    modality: Tensor
    mask: Tensor


@keras.saving.register_keras_serializable(package="keras_moe")
class ModalityEmbedding(NamedArguments, KeptInFloats, MoELayer):
    """Adds a learned vector per modality to tokens and joins the sequences.

    The inputs have width D: word embeddings, projected patches, or projected
    frames, with their positions. The outputs are the inputs of one trunk:

        x, ids, mask = ModalityEmbedding(["text", "image"])(
            {"text": words, "image": patches}
        )
        x = TransformerEncoderBlock(4, block)(x, router_inputs=ids)

    Args:
        modalities: List of str. Names of the M modalities, in the order of
            their numbers and of the joint sequence.
        embeddings_initializer: Keras initializer of the vectors, or its name.
            `"uniform"` by default.
        **kwargs: Arguments of `keras.layers.Layer`.

    Weights: `embeddings` `(M, D)`.

    Call arguments:
        inputs: Dict from names to float tensors `(B, S_m, D)`, or a list of M
            such tensors in order. A dict may leave modalities out; the others
            keep their numbers.
        mask: Dict or list like `inputs` of bool tensors `(B, S_m)`, with None
            for a modality without padding. `None` (the default) uses the Keras
            masks of the inputs, such as that of `Embedding(mask_zero=True)`.

    Returns:
        `ModalityTokens`: tokens `(B, S, D)`, modality `(B, S)`, and mask
        `(B, S)`.

    Raises:
        ValueError: If the names of the modalities are not distinct, if a name
            of `inputs` is unknown, or if the inputs are not floats of shape
            `(B, S_m, D)`.

    Example:

    ```python
    embedding = keras_moe.ModalityEmbedding(["text", "image"])
    tokens, modality, mask = embedding(
        {
            "text": keras.random.normal((2, 5, 16)),
            "image": keras.random.normal((2, 9, 16)),
        }
    )  # tokens (2, 14, 16), modality (2, 14)
    ```
    """

    def __init__(
        self,
        modalities: Sequence[str],
        embeddings_initializer: str | keras.initializers.Initializer = (
            "uniform"
        ),
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.modalities = _check_names(modalities)
        self.embeddings_initializer = checks.check_initializer(
            "embeddings_initializer", embeddings_initializer
        )

    def build(self, input_shape: Any) -> None:
        """Create the vectors for inputs of width D."""
        shapes = self._by_number(input_shape or {})
        self.hidden_dim = checks.check_input_shape(shapes[0][1])
        for _, shape in shapes:
            _check_shape(shape, self.hidden_dim)
        self.embeddings = self.add_weight(
            name="embeddings",
            shape=(len(self.modalities), self.hidden_dim),
            initializer=self.embeddings_initializer,
        )

    def call(self, inputs: Any, mask: Any = None) -> ModalityTokens:
        """Join the sequences of the modalities; see the class."""
        embeddings = ops.convert_to_tensor(self.embeddings)
        tokens, modality = [], []
        for number, x in self._by_number(inputs):
            checks.check_floating(x)
            _check_shape(x.shape, self.hidden_dim)
            tokens.append(x + embeddings[number])
            of_token = ops.zeros_like(x[..., 0], dtype="int32")
            modality.append(of_token + number)
        return ModalityTokens(
            ops.concatenate(tokens, axis=1),
            ops.concatenate(modality, axis=1),
            self._joint_mask(inputs, mask),
        )

    def _joint_mask(self, inputs: Any, mask: Any) -> Tensor:
        """Return the joint mask `(B, S)`, True for modalities without one."""
        masks = {} if mask is None else dict(self._by_number(mask))
        joint = []
        for number, x in self._by_number(inputs):
            own = masks.get(number)
            if own is None:
                own = ops.ones_like(x[..., 0], dtype="bool")
            else:
                checks.check_mask_shape(ops.convert_to_tensor(own), x)
            joint.append(ops.cast(own, "bool"))
        return ops.concatenate(joint, axis=1)

    def _by_number(self, values: Any) -> list[tuple[int, Any]]:
        """Return pairs of a modality's number and its entry, in order."""
        names = self.modalities
        if isinstance(values, dict):
            if values and set(values) <= set(names):
                pairs = enumerate(names)
                return [
                    (i, values[name]) for i, name in pairs if name in values
                ]
            raise ValueError(
                f"`inputs` must have some of the names {names}, and no other. "
                f"Received: {sorted(values)}. Use the names of the layer's "
                "`modalities`."
            )
        if len(values) == len(names):
            return list(enumerate(values))
        raise ValueError(
            f"`inputs` must have {len(names)} entries, one per modality. "
            f"Received: {len(values)}. Pass a dict to leave modalities out."
        )

    def compute_output_spec(
        self, inputs: Any, mask: Any = None
    ) -> ModalityTokens:
        """Return the symbolic `ModalityTokens` of symbolic inputs."""
        entries = [x for _, x in self._by_number(inputs)]
        for x in entries:
            checks.check_floating(x)
        shape = self.compute_output_shape([x.shape for x in entries])
        return ModalityTokens(
            keras.KerasTensor(shape.tokens, self.compute_dtype),
            keras.KerasTensor(shape.modality, "int32"),
            keras.KerasTensor(shape.mask, "bool"),
        )

    def compute_output_shape(self, input_shape: Any) -> ModalityTokens:
        """Return the shapes of the `ModalityTokens`."""
        shapes = input_shape
        if isinstance(shapes, dict):
            shapes = [shape for _, shape in self._by_number(shapes)]
        batch, _, width = shapes[0]
        lengths = [shape[1] for shape in shapes]
        length = None if None in lengths else sum(lengths)
        return ModalityTokens(
            (batch, length, width), (batch, length), (batch, length)
        )

    def compute_mask(
        self, inputs: Any, previous_mask: Any = None
    ) -> list[Tensor | None] | None:
        """Return the mask of the tokens if any modality has one."""
        if previous_mask is None:
            return None
        if all(mask is None for _, mask in self._by_number(previous_mask)):
            return None
        return [self._joint_mask(inputs, previous_mask), None, None]

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that build this layer again."""
        return {
            **super().get_config(),
            "modalities": self.modalities,
            "embeddings_initializer": keras.initializers.serialize(
                self.embeddings_initializer
            ),
        }


def _check_names(names: Any) -> list[str]:
    """Return `names` as a list if they are distinct strings."""
    given = [] if isinstance(names, str) else names
    found = checks.check_list("modalities", given, "distinct names")
    strings = all(isinstance(name, str) for name in found)
    found = [str(name) for name in found] if strings else found
    if found and strings and len(set(found)) == len(found):
        return found
    raise ValueError(
        "`modalities` must be distinct names. Received: modalities="
        f"{names!r}. Pass, for instance, ['text', 'image', 'audio']."
    )


def _check_shape(shape: Shape, width: int) -> None:
    """Raise if the shape of a modality is not `(B, S_m, width)`."""
    if len(shape) != 3 or shape[-1] != width:
        raise ValueError(
            "`inputs` must be of shape (batch, length, hidden_dim), with one "
            f"hidden_dim for all modalities, here {width}. Received: shape "
            f"{tuple(shape)}. Project each modality with a Dense layer."
        )
