"""Make the content of a manifest as `export` writes it, without a model."""

import hashlib

MIXTURE = {
    "path": "moe",
    "class": "MoEBlock",
    "router": "Router",
    "num_experts": 32,
    "top_k": 1,
    "capacity_factor": 1.25,
    "eval_capacity_factor": None,
    "expert_parameters": 3200,
    "expert_bytes": 12800,
}


def content_of(format, file, data, **others):
    """Return a manifest's content.

    Args:
        format: String. One of the formats.
        file: String. Name of the artifact's only file.
        data: Bytes. Content of that file.
        **others: Entries that replace or extend the ones here.
    """
    sealed = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    return {
        "schema": 2,
        "format": format,
        "file": file,
        "inputs": [{"name": "x", "shape": [None, 8], "dtype": "float32"}],
        "outputs": [{"shape": [None, 8], "dtype": "float32"}],
        "quantize": None,
        "exported_on": "jax",
        "written_by": "tensorflow",
        "versions": {"keras-moe": "0.1.0", "tensorflow": None},
        "bytes": len(data),
        "parameters": 3300,
        "active_parameters": 200,
        "parameter_bytes": 13200,
        "mixtures": [MIXTURE],
        "verified": {
            "largest_difference": 2e-7,
            "tolerance": 1e-5,
            "shapes": [[[2, 8]], [[3, 8]]],
            "unreached": {"moe": [3]},
        },
        "files": {file: sealed},
        **others,
    }
