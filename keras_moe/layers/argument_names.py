"""Reject arguments that a layer does not have, and suggest the nearest one."""

import inspect
from collections.abc import Iterable
from typing import Any, Self

import keras

from keras_moe import checks
from keras_moe.checks import nearest_of

# The names of arguments in other libraries, and our names for them. The first
# of these names that a class has is suggested.
FOREIGN = {
    "act": ("activation",),
    "act_fn": ("activation",),
    "activation_fn": ("activation",),
    "activation_function": ("activation",),
    "aux_loss_coef": ("load_balancing_weight",),
    "aux_loss_weight": ("load_balancing_weight",),
    "balance_loss_weight": ("load_balancing_weight",),
    "router_aux_loss_coef": ("load_balancing_weight",),
    "bias": ("use_bias",),
    "capacity": ("capacity_factor",),
    "expert_capacity": ("capacity_factor",),
    "train_capacity_factor": ("capacity_factor",),
    "d_ff": ("intermediate_dim",),
    "d_hidden": ("intermediate_dim",),
    "d_model": ("hidden_dim",),
    "embed_dim": ("hidden_dim",),
    "embedding_dim": ("hidden_dim",),
    "model_dim": ("hidden_dim",),
    "depth": ("num_layers",),
    "n_layers": ("num_layers",),
    "num_hidden_layers": ("num_layers",),
    "drop_rate": ("dropout",),
    "dropout_rate": ("dropout",),
    "rate": ("dropout",),
    "expert_dim": ("intermediate_dim",),
    "ff_dim": ("intermediate_dim",),
    "ffn_dim": ("intermediate_dim",),
    "filters": ("intermediate_dim",),
    "hidden_dim": ("intermediate_dim",),
    "hidden_size": ("hidden_dim", "intermediate_dim"),
    "hidden_units": ("intermediate_dim",),
    "intermediate_size": ("intermediate_dim",),
    "mlp_dim": ("intermediate_dim",),
    "moe_intermediate_size": ("intermediate_dim",),
    "units": ("intermediate_dim", "output_dim"),
    "gate": ("router", "gated"),
    "gating": ("router", "gated"),
    "glu": ("gated",),
    "heads": ("num_heads",),
    "n_heads": ("num_heads",),
    "num_attention_heads": ("num_heads",),
    "n_kv_heads": ("num_key_value_heads",),
    "num_kv_heads": ("num_key_value_heads",),
    "hidden_act": ("activation",),
    "swiglu_alpha": ("activation",),
    "swiglu_limit": ("activation",),
    "up_activation": ("activation",),
    "jitter_eps": ("jitter",),
    "router_jitter_noise": ("jitter",),
    "k": ("top_k",),
    "num_experts_per_tok": ("top_k",),
    "num_experts_per_token": ("top_k",),
    "num_selected": ("top_k",),
    "num_selected_experts": ("top_k",),
    "topk": ("top_k",),
    "topk_group": ("top_k_groups",),
    "n_group": ("num_groups",),
    "lr": ("learning_rate",),
    "n_experts": ("num_experts",),
    "n_routed_experts": ("num_experts",),
    "num_local_experts": ("num_experts",),
    "n_shared_experts": ("num_shared_experts", "shared_expert_dim"),
    "num_shared_experts": ("shared_expert_dim",),
    "shared_expert_intermediate_size": ("shared_expert_dim",),
    "norm_topk_prob": ("normalize_weights",),
    "renormalize": ("normalize_weights",),
    "noise_epsilon": ("noise_std",),
    "output_size": ("output_dim",),
    "out_features": ("output_dim",),
    "random_seed": ("seed",),
    "random_state": ("seed",),
    "score_func": ("scoring",),
    "scoring_func": ("scoring",),
    "max_position_embeddings": ("max_length",),
    "max_seq_len": ("max_length",),
    "seq_len": ("max_length",),
    "sequence_length": ("max_length",),
    "n_labels": ("num_classes", "num_tags"),
    "num_labels": ("num_classes", "num_tags"),
    "vocab_size": ("vocabulary_size",),
    "router_z_loss_coef": ("router_z_weight",),
    "z_loss_coef": ("router_z_weight",),
    "z_loss_weight": ("router_z_weight",),
}
# The arguments of Keras's constructors that every layer accepts.
OF_KERAS = {
    *inspect.signature(keras.layers.Layer.__init__).parameters,
    "input_shape",
    "input_dim",
} - {"self", "args", "kwargs"}


class NamedArguments:
    """Base class of the layers and models of this package, before Keras's.

    It rejects arguments that Keras would call "unrecognized", and those that a
    subclass fixes. The remaining arguments of `keras.layers.Layer` are
    accepted.

    Attributes:
        fixed_arguments: Names of the base class's arguments that a class sets
            itself. A subclass accepts such an argument if its own constructor
            has it.
    """

    fixed_arguments: tuple[str, ...] = ()

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Reject fixed arguments before a constructor sets them twice."""
        for name in set(cls.fixed_arguments) & set(kwargs):
            if name not in inspect.signature(cls.__init__).parameters:
                raise ValueError(
                    f"`{name}` must be left out of {cls.__name__}, which sets "
                    f"it itself. Received: {name}={kwargs[name]!r}. Use a "
                    "class with this argument."
                )
        return super().__new__(cls, *args, **kwargs)

    def __init__(self, *args: Any, **kwargs: Any):
        if not OF_KERAS.issuperset(kwargs):
            cls = type(self)
            behind = cls.__mro__[cls.__mro__.index(NamedArguments) + 1 :]
            passed_on = (*OF_KERAS, *_names_in(behind))
            check_names(cls.__name__, kwargs, names_of(cls), passed_on)
        for name in ("trainable", "autocast"):
            if name in kwargs:
                kwargs[name] = checks.check_bool(name, kwargs[name])
        if kwargs.get("activity_regularizer") is not None:
            name = "activity_regularizer"
            kwargs[name] = checks.check_regularizer(name, kwargs[name])
        check_dtype(kwargs.get("dtype"))
        super().__init__(*args, **kwargs)


def check_names(
    owner: str,
    arguments: Iterable[str],
    known: Iterable[str],
    passed_on: Iterable[str] = (),
) -> None:
    """Raise if a class or function does not have one of the arguments.

    Args:
        owner: Str. Name of the class or function.
        arguments: Dict of arguments, or their names.
        known: Names of the arguments of the owner.
        passed_on: Names that another constructor accepts.

    Raises:
        ValueError: If there is another name. The message suggests the nearest
            name of `known`.
    """
    known = tuple(known)
    allowed = {*passed_on} or {*known}
    for name in arguments:
        if name in allowed:
            continue
        value = ""
        if isinstance(arguments, dict):
            value = f"={arguments[name]!r}"
        raise ValueError(
            f"`{name}` must be left out: {owner} has no such argument. "
            f"Received: {name}{value}. {_remedy(name, known)}"
        )


def names_of(cls: Any) -> tuple[str, ...]:
    """Return the names of a constructor's arguments, including inherited."""
    fixed = {"self", *getattr(cls, "fixed_arguments", ())}
    found = [*_names_in(cls.__mro__), *sorted(OF_KERAS)]
    return tuple(name for name in dict.fromkeys(found) if name not in fixed)


def _names_in(classes: Iterable[type]) -> dict[str, None]:
    """Return the argument names of constructors.

    Stops at a constructor without `**kwargs`, which passes none to the next.
    """
    found: dict[str, None] = {}
    for base in classes:
        if base in (keras.layers.Layer, keras.Model):
            break
        if "__init__" not in vars(base) or base is NamedArguments:
            continue
        parameters = inspect.signature(
            vars(base)["__init__"]
        ).parameters.values()
        kinds = {parameter.kind for parameter in parameters}
        found |= {
            p.name: None
            for p in parameters
            if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        }
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            break
    return found


def _remedy(name: str, known: tuple[str, ...]) -> str:
    for candidate in FOREIGN.get(name.lower(), ()):
        if candidate in known:
            return f"Did you mean `{candidate}`?"
    nearest = nearest_of(name, known)
    if nearest is not None:
        return f"Did you mean `{nearest}`?"
    return f"The arguments are {', '.join(known)}."


def check_dtype(dtype: Any) -> Any:
    """Return the dtype policy that `dtype` is or names."""
    try:
        return keras.dtype_policies.get(dtype)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            "`dtype` must be None, a dtype policy, or the name of one. "
            f"Received: dtype={dtype!r}. Pass, for instance, 'float32' or "
            "'mixed_bfloat16'."
        ) from error
