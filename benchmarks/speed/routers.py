"""Time each router, as a share of the block that it routes for.

    KERAS_BACKEND=torch python benchmarks/speed/routers.py

`run_suite.py` runs it as the part `routers`. It times the forward pass of each
router at shape M, in evaluation and in training (which draws noise, sums
losses, and computes Sinkhorn's plan), and divides it by the forward pass of a
whole block with the default router.

E experts, K top_k.
"""

import sys
from pathlib import Path

import keras
import numpy as np
from keras import ops

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import keras_moe
from benchmarks.shared import command_line, contestants, timing
from benchmarks.shared.random_problem import draw
from benchmarks.shared.shapes import SHAPES
from benchmarks.shared.timed_calls import call_of, model_of

SHAPE, QUICK = SHAPES["M"], SHAPES["S"]
LENGTH = 256  # of the sequences that AttentionRouter reads


def routers(shape):
    """Return every router by name, with E and K of the shape.

    Routers that can use many experts per token are limited to K, because only
    the routing is measured.
    """
    E, K = shape.E, shape.K
    return {
        "Router": keras_moe.Router(E, K),
        "Router, groups and bias": keras_moe.Router(
            E, K, "sigmoid", num_groups=4, top_k_groups=2, expert_bias=True
        ),
        "Router, null experts": keras_moe.Router(E, K, num_null_experts=3),
        "SwitchRouter": keras_moe.SwitchRouter(E),
        "GShardRouter": keras_moe.GShardRouter(E),
        "ModalityRouter": keras_moe.ModalityRouter(E, 3, K),
        "NoisyTopKRouter": keras_moe.NoisyTopKRouter(E, K),
        "ExpertChoiceRouter": keras_moe.ExpertChoiceRouter(
            E, K, bidirectional=True
        ),
        "SinkhornRouter": keras_moe.SinkhornRouter(E, K),
        "CosineRouter": keras_moe.CosineRouter(E, K),
        "AttentionRouter": keras_moe.AttentionRouter(E, K),
        "HashRouter": keras_moe.HashRouter(E, K),
        "HierarchicalRouter": keras_moe.HierarchicalRouter(E, 4, K),
        "PathwayRouter": keras_moe.PathwayRouter(E, K),
        "RuleRouter": keras_moe.RuleRouter(E),
        "ReLURouter": keras_moe.ReLURouter(E, K, max_experts=K),
        "SparseMixerRouter": keras_moe.SparseMixerRouter(E),
        "TopPRouter": keras_moe.TopPRouter(E, top_k=K),
    }


class Routed(keras.layers.Layer):
    """Runs a router alone, and returns the fields of its `Assignment`."""

    def __init__(self, router, in_training, **kwargs):
        super().__init__(**kwargs)
        self.router, self.in_training = router, in_training

    def build(self, input_shape):
        self.router.build(input_shape)

    def call(self, x, training=None):
        sequences = ops.reshape(x, (-1, LENGTH, x.shape[-1]))
        ids = None
        if self.router.router_inputs_kind == "logits":
            ids = sequences[..., : self.router.num_experts]
        elif self.router.router_inputs_use == "required":
            router = self.router
            ids = ops.cast(ops.abs(1000 * sequences[..., 0]), "int32")
            most = getattr(router, "num_modalities", router.num_experts)
            ids = ops.mod(ids, most)
        assignment = self.router(
            sequences, training=self.in_training, router_inputs=ids
        )
        return list(assignment)

    def compute_output_spec(self, x, training=None):
        shape = (x.shape[0] // LENGTH, LENGTH, x.shape[-1])
        return list(self.router.assignment_spec(shape))


def main():
    """Write one record per router, in evaluation and in training."""
    args = command_line.parser_of(__doc__).parse_args()
    shape = QUICK if args.quick else SHAPE
    problem = draw(shape)
    x = ops.convert_to_tensor(problem.x)
    block = contestants.ours(problem)[0].layer
    calls = {"block": call_of("forward", block, problem.x, problem.dy)}
    for mode in ("evaluation", "training"):
        for name, router in routers(shape).items():
            layer = Routed(router, mode == "training")
            model = model_of(x.shape, layer)
            calls[name, mode] = lambda model=model: model.predict_on_batch(x)
    for call in calls.values():
        call()
    clock = timing.clock_of(args.pinned)
    limits = timing.QUICK if args.quick else timing.FULL
    times = timing.interleave(calls, "block", limits, clock)
    records = []
    for (name, mode), taken in list(times.items())[1:]:
        share = timing.ratio(taken, times["block"])
        record = {"part": "routers", "kind": mode, "name": name}
        record |= {"status": "ok", "seconds": float(np.median(taken))}
        records.append(record | {"to_block": list(share)})
        print(name, mode, f"{share[0]:.3f}", file=sys.stderr)
    command_line.write(records, args.out)


if __name__ == "__main__":
    main()
