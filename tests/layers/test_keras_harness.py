"""Run Keras's own test of a layer on every layer and every router.

Keras's test builds the layer from its config, from a shape, and on symbolic and
eager inputs; compares the number of weights, the declared shape, and the dtypes
under mixed precision; and trains for a step. The numbers below are counted by
hand.
"""

import keras
import pytest
from backend import BACKEND
from cases import cases
from keras import ops
from keras.src import testing  # noqa: TID251, which tests alone may use
from router_zoo import ROUTERS, D, E
from zoo import LAYERS, WIDTH

import keras_moe

# keras.layers.MultiHeadAttention has no float16 on JAX CPU.
NO_FLOAT16 = BACKEND == "jax"
pytestmark = pytest.mark.filterwarnings(  # from the harness's own data
    "ignore:`shuffle=True` was passed:UserWarning"
)
STATISTICS = 3  # expert_load, fraction_dropped, and the number of batches
LINEAR = 2  # a kernel and a bias
FFN = 2 * LINEAR  # up and down
GATED = 3 * LINEAR
ATTENTION = 4 * LINEAR  # queries, keys, values, outputs
NORM = 2
ENABLED = 1  # a router's `expert_enabled`

# Each entry has the numbers of trainable weights, other weights, and random
# generators, of which each router, `Expert`, and Keras layer with dropout has
# one.
OF_LAYER = {
    "Router": (LINEAR, ENABLED, 1),
    "Router sigmoid": (1, ENABLED, 1),
    "Expert": (FFN, 0, 1),
    "Expert gated": (GATED, 0, 1),
    "MoEBlock": (1 + FFN, ENABLED + STATISTICS, 2),
    "MoEBlock full": (1 + 2 * GATED, ENABLED + STATISTICS, 3),
    # Two matrices and the gate of the shared expert.
    "MoEBlock of layers": (1 + 2 + 3, ENABLED + STATISTICS, 3),
    # The last of three null experts has a vector and a mixing kernel.
    "MoEBlock of null experts": (1 + FFN + 2, ENABLED + 1 + STATISTICS, 2),
    "SoftMoE": (2 + FFN, 0, 1),
    # Two layers have three banks each, with three routers and then two.
    "PLE": (2 * 3 * GATED + 3 + 2, 0, 2 * 3),
    "MoEBlock of unlike experts": (1 + 2 * LINEAR, ENABLED + STATISTICS, 1),
    "MixtureOfModels": (1 + LINEAR + FFN, ENABLED + STATISTICS, 2),
    "TransformerEncoderBlock": (
        2 * NORM + ATTENTION + 1 + FFN,
        ENABLED + STATISTICS,
        2,
    ),
    "TransformerEncoderBlock dense": (2 * NORM + ATTENTION + FFN, 0, 2),
    "TransformerDecoderBlock": (
        2 * NORM + ATTENTION + 1 + FFN,
        ENABLED + STATISTICS,
        2,
    ),
}

# Each entry has the numbers of a router's trainable weights and of its others
# without `ENABLED`. Routers that are not listed have only a kernel.
KERNEL_ALONE = (1, 0)
OF_ROUTER = {
    "Router of square roots": (2, 0),  # bias
    "Router with a norm": (2, 0),  # input_scale
    "Router of groups": (1, 1),  # expert_bias
    "Router with identities": (1, 1),  # expert_bias
    "ModalityRouter": (2, 0),  # modality_bias
    "NoisyTopKRouter": (2, 0),  # noise_kernel
    "CosineRouter": (3, 0),  # projection, log_temperature
    "AttentionRouter": (4, 0),  # queries, keys, values, and experts' keys
    "HashRouter": (0, 0),
    "HashRouter round robin": (0, 0),
    "HierarchicalRouter of groups": (2, 0),  # a bias; groups are columns
    "PathwayRouter": (2, 0),  # pathway_kernel
    "RuleRouter": (0, 0),
    "ReLURouter": (2, 1),  # bias; l1_coefficient
}


@keras.saving.register_keras_serializable(package="tests")
class WithInputs(keras.layers.Layer):
    """A layer that makes a block's router inputs from its own inputs."""

    def __init__(self, block, **kwargs):
        super().__init__(**kwargs)
        self.block = block

    def build(self, input_shape):
        if not self.block.built:
            self.block.build(input_shape)

    def call(self, x, training=None):
        given = None
        if self.block.router.router_inputs_use == "required":
            given = x[..., :E]
            if self.block.router.router_inputs_kind == "ids":
                given = ops.cast(x[..., 0], "int32")  # the harness has 0 ... 3
        return self.block(x, training=training, router_inputs=given)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        block = keras.saving.serialize_keras_object(self.block)
        return {**super().get_config(), "block": block}

    @classmethod
    def from_config(cls, config):
        block = keras.saving.deserialize_keras_object(config.pop("block"))
        return cls(block=block, **config)


def run_harness(make, counts, width, **options):
    trainable, fixed, generators = counts
    testing.TestCase().run_layer_test(
        make,
        options.pop("init_kwargs", {}),
        input_shape=(2, 5, width),
        expected_output_shape=(2, 5, width),
        expected_num_trainable_weights=trainable,
        expected_num_non_trainable_weights=fixed,
        expected_num_non_trainable_variables=fixed + generators,
        expected_num_seed_generators=generators,
        **options,
    )


def test_every_layer_and_router_is_counted():
    assert set(OF_LAYER) == set(LAYERS) and set(OF_ROUTER) <= set(ROUTERS)


@pytest.mark.parametrize(
    "name", cases(LAYERS, everywhere=["MoEBlock full", "SoftMoE", "PLE"])
)
def test_a_layer(name):
    half = not (NO_FLOAT16 and "Transformer" in name)
    run_harness(
        LAYERS[name], OF_LAYER[name], WIDTH, run_mixed_precision_check=half
    )


def block_of(name, **kwargs):
    router = ROUTERS[name]()
    block = keras_moe.MoEBlock(
        router=router, intermediate_dim=12, name="block", **kwargs
    )
    return WithInputs(block, **kwargs)


# One of each way to choose: in stages, by experts, by a rule.
SOME = ("HierarchicalRouter of groups", "ExpertChoiceRouter", "RuleRouter")
every_router = pytest.mark.parametrize("name", cases(ROUTERS, everywhere=SOME))


@every_router
def test_a_router_in_its_block(name):
    trainable, fixed = OF_ROUTER.get(name, KERNEL_ALONE)
    if name == "Router with null experts":
        trainable += 2  # the vectors, and the kernel that mixes them
    run_harness(
        lambda **kw: block_of(name, **kw),
        (trainable + FFN, fixed + ENABLED + STATISTICS, 2),
        D,
    )


@keras.saving.register_keras_serializable(package="tests")
class Scored(WithInputs):
    """A user's own layer that multiplies tokens by a bare router's score."""

    def call(self, x, training=None):
        router, given = self.block, None
        if router.router_inputs_use == "required":
            given = x[..., :E]
            if router.router_inputs_kind == "ids":
                given = ops.cast(x[..., 0], "int32")
        assignment = router(x, training=training, router_inputs=given)
        best = ops.max(assignment.router_probs, axis=-1)
        best = ops.reshape(best, ops.shape(x)[:-1] + (1,))
        return x * ops.cast(best, x.dtype)


@every_router
def test_a_router_in_a_users_own_layer(name):
    trainable, fixed = OF_ROUTER.get(name, KERNEL_ALONE)
    run_harness(
        lambda **kw: Scored(ROUTERS[name](), **kw),
        (trainable, fixed + ENABLED, 1),
        D,
        run_training_check=trainable > 0,
    )


@pytest.mark.parametrize(
    "parts",
    [
        {"router": keras_moe.Router(4, 2)},
        {"experts": keras_moe.Expert(12, 4), "num_experts": 4},
    ],
    ids=["router", "experts"],
)
def test_blocks_that_are_given_one_part(parts):
    """All blocks that the harness builds share the given router or experts."""
    arguments = {"intermediate_dim": 12, "top_k": 2, **parts}
    if "experts" in parts:
        del arguments["intermediate_dim"]
    run_harness(
        keras_moe.MoEBlock,
        (1 + FFN, ENABLED + STATISTICS, 2),
        D,
        init_kwargs=arguments,
    )
