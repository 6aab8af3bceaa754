"""Draw a small picture of each form of mixture, for the README.

    python examples/figures/draw.py [FOLDER]

A picture shows inputs, router, experts, combination, and outputs from left to
right. Parts that run for the input shown are solid, and the others are pale.
"""

import sys
from pathlib import Path

import layer_forms
import model_forms

FORMS = (
    layer_forms.moe_block,
    layer_forms.example_level,
    layer_forms.soft_moe,
    layer_forms.hierarchical_moe,
    layer_forms.shared_experts,
    layer_forms.modalities,
    model_forms.models_dense,
    model_forms.models_sparse,
    model_forms.multi_gate_moe,
    model_forms.ple,
    model_forms.ensemble,
    model_forms.language_model,
)


def main(folder=Path(__file__).parent):
    """Write a file for each form."""
    for form in FORMS:
        form().save(Path(folder) / f"{form.__name__}.svg")


if __name__ == "__main__":
    main(*sys.argv[1:])
