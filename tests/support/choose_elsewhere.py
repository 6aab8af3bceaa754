"""Route fixed tokens by fixed weights, on any backend."""

import zlib

import numpy as np
from router_zoo import ROUTERS, D, arrays, router_inputs_of


def main(out):
    x = np.random.default_rng(0).normal(size=(40, D)).astype("float32")
    choices = {}
    for name, make in ROUTERS.items():
        router = make()
        router.build(x.shape)
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        for weight in router.trainable_weights:
            weight.assign(rng.normal(size=weight.shape).astype("float32"))
        assignment = router(x, router_inputs=router_inputs_of(router, (40,)))
        choices[name] = arrays(assignment).expert_index
    np.savez(out, **choices)
