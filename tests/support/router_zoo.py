"""Define every router for the tests of properties that all routers have."""

import keras
import numpy as np
from cases import cases
from keras import ops

import keras_moe

E, D = 6, 8

ROUTERS = {
    "Router": lambda **kw: keras_moe.Router(E, **kw),
    "Router sigmoid": lambda **kw: keras_moe.Router(E, 3, "sigmoid", **kw),
    "Router of square roots": lambda **kw: keras_moe.Router(
        E, 2, "sqrt_softplus", logit_softcap=4.0, use_bias=True, **kw
    ),
    "Router with a norm": lambda **kw: keras_moe.Router(
        E, 2, normalize_inputs=True, **kw
    ),
    "Router of groups": lambda **kw: keras_moe.Router(
        E, 2, num_groups=3, top_k_groups=2, expert_bias=True, **kw
    ),
    "Router with null experts": lambda **kw: keras_moe.Router(
        E, 2, "topk_softmax", num_null_experts=4, **kw
    ),
    "Router with identities": lambda **kw: keras_moe.Router(
        E,
        2,
        num_null_experts=3,
        null_outputs="identity",
        expert_bias=True,
        normalize_weights=False,
        **kw,
    ),
    "SwitchRouter": lambda **kw: keras_moe.SwitchRouter(E, **kw),
    "GShardRouter": lambda **kw: keras_moe.GShardRouter(E, **kw),
    "ModalityRouter": lambda **kw: keras_moe.ModalityRouter(
        E, num_modalities=E, modality_bias=True, **kw
    ),
    "ModalityRouter of groups": lambda **kw: keras_moe.ModalityRouter(
        E,
        num_modalities=E,
        top_k=1,
        experts_of_modality=[[m, (m + 1) % E, (m + 2) % E] for m in range(E)],
        local_entropy_weight=[0.1] + [0.0] * (E - 1),
        threshold=0.5,
        **kw,
    ),
    "NoisyTopKRouter": lambda **kw: keras_moe.NoisyTopKRouter(E, **kw),
    "ExpertChoiceRouter": lambda **kw: keras_moe.ExpertChoiceRouter(
        E, bidirectional=True, **kw
    ),
    "SinkhornRouter": lambda **kw: keras_moe.SinkhornRouter(E, 2, **kw),
    "CosineRouter": lambda **kw: keras_moe.CosineRouter(E, **kw),
    "AttentionRouter": lambda **kw: keras_moe.AttentionRouter(E, **kw),
    "HashRouter": lambda **kw: keras_moe.HashRouter(E, 2, **kw),
    "HashRouter round robin": lambda **kw: keras_moe.HashRouter(
        E, 2, "round_robin", **kw
    ),
    "HierarchicalRouter of groups": lambda **kw: keras_moe.HierarchicalRouter(
        E, 3, 4, 2, use_bias=True, **kw
    ),
    "PathwayRouter": lambda **kw: keras_moe.PathwayRouter(E, **kw),
    "RuleRouter": lambda **kw: keras_moe.RuleRouter(E, **kw),
    "ReLURouter": lambda **kw: keras_moe.ReLURouter(E, **kw),
    "SparseMixerRouter": lambda **kw: keras_moe.SparseMixerRouter(
        E, margin=0.2, **kw
    ),
    "TopPRouter": lambda **kw: keras_moe.TopPRouter(E, **kw),
}
NORMALIZED = {  # the weights of each computed token sum to one
    "Router",
    "Router sigmoid",
    "Router of square roots",
    "Router with a norm",
    "Router of groups",
    "Router with null experts",
    "NoisyTopKRouter",
    "CosineRouter",
    "AttentionRouter",
    "ModalityRouter",
    "PathwayRouter",
    "HashRouter",
    "HashRouter round robin",
    "RuleRouter",
}


def is_variant(name):
    """Return whether another router of the class covers the backends."""
    return " " in name and not name.endswith("Router of groups")


def router_cases(names=ROUTERS):
    """Return names as parameters; a variant runs on one backend."""
    return cases(names, everywhere=[n for n in names if not is_variant(n)])


def router_inputs_of(router, shape, seed=0):
    """Return ids in 0 ... E - 1, or logits, if the router requires them."""
    if router.router_inputs_use != "required":
        return None
    rng = np.random.default_rng(seed)
    if router.router_inputs_kind == "logits":
        return rng.normal(size=(*shape, E)).astype("float32")
    return rng.integers(0, E, shape).astype("int32")


def symbolic_router_inputs(router, length=5, **options):
    """Return an `Input` for the router inputs, or None if not required."""
    if router.router_inputs_use != "required":
        return None
    if router.router_inputs_kind == "logits":
        return keras.Input((length, E), **options)
    return keras.Input((length,), dtype="int32", **options)


def arrays(assignment):
    """Return the assignment as NumPy arrays."""

    def array(field):
        field = ops.stop_gradient(field)
        return np.asarray(ops.convert_to_numpy(field))

    return type(assignment)(*(array(field) for field in assignment))


def logit_router(router, width=3):
    """Build a linear router whose logits are its inputs."""
    router.build((None, width))
    router.kernel.assign(np.eye(width, router.num_columns))
    return router


def model_of(router, length=5):
    """Return a small model with a block; it takes router inputs if required."""
    inputs = [keras.Input((length, D))]
    ids = symbolic_router_inputs(router, length)
    inputs += [] if ids is None else [ids]
    block = keras_moe.MoEBlock(E, 12, router=router, name="block")
    x = keras.layers.Dense(D)(inputs[0])
    x = x + block(x, router_inputs=ids)
    x = keras.layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, keras.layers.Dense(1)(x))
