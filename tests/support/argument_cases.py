"""Define the calls whose arguments the fuzzer replaces.

A case is a constructor or a function, with arguments that it accepts.
"""

import keras
import numpy as np

import keras_moe
from keras_moe import (
    callbacks,
    compress,
    distribution,
    ensemble,
    export,
    losses,
    metrics,
    models,
    routing,
    training,
)

# Tokens, experts, width, and intermediate width.
T, E, D, F = 6, 4, 8, 6


def dense(width=D):
    return keras.layers.Dense(width)


def built_model():
    inputs = keras.Input((D,))
    x = keras_moe.MoEBlock(E, F, name="moe")(inputs)
    outputs = keras.layers.Dense(3, activation="softmax")(x)
    return keras.Model(inputs, outputs)


def assignment():
    probs = np.full((T, E), 1 / E, "float32")
    return keras_moe.Assignment(
        np.repeat(np.arange(T, dtype="int32"), 2),
        np.tile(np.array([0, 1], "int32"), T),
        np.full(2 * T, 0.5, "float32"),
        probs,
        np.zeros((T, E), "float32"),
        np.float32(0),
    )


def rows(width=E):
    return np.random.default_rng(0).normal(size=(T, width)).astype("float32")


COMMON_BLOCKS = {
    "num_layers": 1,
    "hidden_dim": D,
    "num_heads": 2,
    "intermediate_dim": F,
    "num_experts": E,
}


def routers():
    """Return the constructors of routers with arguments that they accept."""
    own = {
        "HierarchicalRouter": {"num_groups": 2},
        "ModalityRouter": {"num_modalities": 2},
        "ExpertChoiceRouter": {"bidirectional": True},
    }
    names = [n for n in keras_moe.__all__ if n.endswith("Router")]
    return {
        name: (
            getattr(keras_moe, name),
            {"num_experts": E, **own.get(name, {})},
        )
        for name in names
    }


def layers():
    """Return the constructors of layers with arguments that they accept."""
    tasks = {
        "num_tasks": 2,
        "num_shared_experts": 1,
        "num_task_experts": 1,
        "intermediate_dim": F,
    }
    block = {"num_experts": E, "intermediate_dim": F}
    return {
        **routers(),
        "MoEBlock": (keras_moe.MoEBlock, block),
        "HierarchicalMoE": (
            keras_moe.HierarchicalMoE,
            {"num_groups": 2, **block},
        ),
        "SoftMoE": (keras_moe.SoftMoE, block),
        "Expert": (keras_moe.Expert, {"intermediate_dim": F}),
        "ExpertLayers": (
            keras_moe.ExpertLayers,
            {"layers": lambda: [dense(), dense()]},
        ),
        "MixtureOfModels": (
            keras_moe.MixtureOfModels,
            {"experts": lambda: [dense(), dense()]},
        ),
        "ModalityEmbedding": (
            keras_moe.ModalityEmbedding,
            {"modalities": ["text", "image"]},
        ),
        "MultiGateMoE": (keras_moe.MultiGateMoE, {**block, "num_tasks": 2}),
        "CGC": (keras_moe.CGC, tasks),
        "PLE": (keras_moe.PLE, tasks),
        "UncertaintyWeighting": (
            keras_moe.UncertaintyWeighting,
            {"num_tasks": 2},
        ),
        "TransformerEncoderBlock": (
            keras_moe.TransformerEncoderBlock,
            {"num_heads": 2, "moe": lambda: keras_moe.Expert(F)},
        ),
        "TransformerDecoderBlock": (
            keras_moe.TransformerDecoderBlock,
            {"num_heads": 2, "moe": lambda: keras_moe.Expert(F)},
        ),
        "TokenEmbedding": (
            models.TokenEmbedding,
            {"input_dim": 9, "output_dim": D},
        ),
        "PositionEmbedding": (models.PositionEmbedding, {"max_length": 9}),
        "MeanPooling": (models.MeanPooling, {}),
        "StackingHead": (ensemble.StackingHead, {"num_members": 2}),
        "MergedRouter": (
            compress.MergedRouter,
            {"num_experts": 2, "router": lambda: keras_moe.Router(E)},
        ),
    }


def plain_objects():
    """Return schedules, callbacks, and settings with accepted arguments."""
    return {
        "BalanceWarmUp": (training.BalanceWarmUp, {}),
        "ClippedSwiGLU": (keras_moe.ClippedSwiGLU, {}),
        "CyclicCosine": (
            ensemble.CyclicCosine,
            {"initial_learning_rate": 0.1, "cycle_steps": 5},
        ),
        "RouterLearningRate": (
            training.RouterLearningRate,
            {"inner_optimizer": "sgd"},
        ),
        "BalanceGuard": (callbacks.BalanceGuard, {}),
        "RoutingMetrics": (callbacks.RoutingMetrics, {}),
        "BackupAndResume": (
            distribution.BackupAndResume,
            {"directory": "saves"},
        ),
        "DataShard": (distribution.DataShard, {"index": 0, "count": 2}),
        "PlanConfig": (
            distribution.PlanConfig,
            {
                "tokens": 64,
                "hidden_dim": D,
                "intermediate_dim": F,
                "num_experts": E,
            },
        ),
        "Blocks": (models.Blocks, COMMON_BLOCKS),
        "hypermodel": (training.hypermodel, {"build": lambda: len}),
        "job_text": (
            distribution.job_text,
            {"cluster": "slurm", "script": "train.py", "backend": "jax"},
        ),
        "plan": (
            distribution.plan,
            {"config": plan_config, "devices": 2},
        ),
        "estimate": (
            distribution.estimate,
            {"config": plan_config, "data": 1, "expert": 2},
        ),
    }


def plan_config():
    return distribution.PlanConfig(64, D, F, E)


def classifier():
    """Return a built model with a block and three classes, made only once."""
    if not _MADE:
        _MADE.append(built_model())
    return _MADE[0]


_MADE: list = []


def trunk():
    ids = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(9, D, name="embedding")(ids)
    return keras.Model(ids, keras.layers.Dropout(0.1)(x))


def whole_models():
    """Return models and functions of models, with accepted arguments."""
    sizes = {"vocabulary_size": 9, "max_length": 5, **COMMON_BLOCKS}
    return {
        "MoELanguageModel": (models.MoELanguageModel, sizes),
        "MoESeq2Seq": (models.MoESeq2Seq, sizes),
        "MoEClassifier": (models.MoEClassifier, {**sizes, "num_classes": 2}),
        "MoETagger": (models.MoETagger, {**sizes, "num_tags": 2}),
        "MoEVisionClassifier": (
            models.MoEVisionClassifier,
            {
                "image_shape": (4, 4, 1),
                "patch_size": 2,
                "num_classes": 2,
                **COMMON_BLOCKS,
            },
        ),
        "RDrop": (training.RDrop, {"model": classifier}),
        "ContrastiveModel": (training.ContrastiveModel, {"trunk": trunk}),
        "MaskedTokenModel": (
            training.MaskedTokenModel,
            {"trunk": trunk, "vocabulary_size": 9, "mask_token_id": 8},
        ),
        "FGM": (training.FGM, {"model": trunk, "embedding": "embedding"}),
        "Distiller": (
            compress.Distiller,
            {"student": built_model, "teacher": classifier},
        ),
        "distill": (
            compress.distill,
            {"student": built_model, "teacher": classifier},
        ),
        "UncertaintyWeightedModel": (
            keras_moe.UncertaintyWeightedModel,
            {"model": two_headed, "losses": ["mse", "mse"]},
        ),
        "Ensemble": (
            keras_moe.Ensemble,
            {"models": lambda: [classifier(), built_model()]},
        ),
        "prune_experts": (
            compress.prune_experts,
            {"model": classifier, "keep": 2, "by": "weight"},
        ),
        "prune_weights": (
            compress.prune_weights,
            {"model": classifier, "sparsity": 0.5},
        ),
        "to_dense": (compress.to_dense, {"model": classifier}),
        "find_blocks": (callbacks.find_blocks, {"model": classifier}),
        "freeze_routers": (training.freeze_routers, {"model": built_model}),
        "unfreeze_routers": (training.unfreeze_routers, {"model": built_model}),
        "routing_of": (
            keras_moe.routing_of,
            {"model": classifier, "x": rows(D)},
        ),
        "describe": (export.describe, {"model": classifier}),
    }


def two_headed():
    inputs = keras.Input((D,))
    heads = [keras.layers.Dense(1, name=name)(inputs) for name in "ab"]
    return keras.Model(inputs, heads)


def functions():
    """Return pure functions with arguments that they accept."""
    logits, modality = rows(), np.array([0, 1] * (T // 2), "int32")
    ids = np.arange(T, dtype="int32")
    found, probs = assignment(), np.full((T, E), 1 / E, "float32")
    given = {"router_logits": logits, "top_k": 2}
    pairs = {"expert_index": found.expert_index, "num_experts": E}
    coefficient = np.full(1, 1e-3, "float32")
    of_modality = {
        "router_probs": probs,
        "modality": modality,
        "num_modalities": 2,
    }
    return {
        "top_k_assignment": (routing.top_k_assignment, given),
        "top_p_assignment": (
            routing.top_p_assignment,
            {**given, "top_p": 0.5},
        ),
        "sinkhorn_assignment": (
            routing.sinkhorn_assignment,
            {**given, "num_iterations": 2},
        ),
        "sinkhorn": (routing.sinkhorn, {"router_logits": logits}),
        "relu_assignment": (
            routing.relu_assignment,
            {**given, "max_experts": E, "l1_coefficient": coefficient},
        ),
        "next_l1_coefficient": (
            routing.next_l1_coefficient,
            {**given, "l1_coefficient": coefficient, "growth": 1.2},
        ),
        "modality_assignment": (
            routing.modality_assignment,
            {**given, "allowed": None},
        ),
        "hierarchical_assignment": (
            routing.hierarchical_assignment,
            {"group_logits": rows(2), "expert_logits": logits, "top_k": 2},
        ),
        "expert_choice_assignment": (
            routing.expert_choice_assignment,
            {"router_logits": logits, "capacity": 2},
        ),
        "fixed_assignment": (
            routing.fixed_assignment,
            {"scores": logits, "top_k": 2},
        ),
        "hash_scores": (routing.hash_scores, {"ids": ids, "num_experts": E}),
        "cyclic_scores": (
            routing.cyclic_scores,
            {"ids": ids, "num_experts": E},
        ),
        "rule_scores": (
            routing.rule_scores,
            {"expert": ids % E, "num_experts": E, "default_expert": None},
        ),
        "keep_best_groups": (
            routing.keep_best_groups,
            {"scores": logits, "num_groups": 2, "top_k_groups": 1, "best": 1},
        ),
        "sparse_mixer_assignment": (
            routing.sparse_mixer_assignment,
            {"router_logits": logits, "noise": rows(), "draw": rows(2)},
        ),
        "null_weight": (
            routing.null_weight,
            {"assignment": found, "pairs_per_token": 2},
        ),
        "scale_weights": (
            routing.scale_weights,
            {"assignment": found, "expert_scale": np.ones(E, "float32")},
        ),
        "balanced_bias": (
            routing.balanced_bias,
            {
                "expert_bias": np.zeros(E, "float32"),
                **pairs,
                "step_size": 0.1,
            },
        ),
        "expert_capacity": (
            routing.expert_capacity,
            {
                "num_tokens": T,
                "num_experts": E,
                "top_k": 2,
                "capacity_factor": 1.25,
            },
        ),
        "apply_capacity": (
            routing.apply_capacity,
            {"assignment": found, "capacity": 2},
        ),
        "apply_sequence_capacity": (
            routing.apply_sequence_capacity,
            {
                "assignment": found,
                "capacity": 2,
                "num_sequences": 2,
                "pairs_per_sequence": T,
            },
        ),
        "drop_weak_second": (
            routing.drop_weak_second,
            {"assignment": found, "threshold": 0.2},
        ),
        "dense_weights": (
            routing.dense_weights,
            {
                "assignment": found,
                "pairs_per_token": 2,
                "experts": np.arange(E, dtype="int32"),
            },
        ),
        "pair_scores": (routing.pair_scores, {"assignment": found}),
        "load_balancing_loss": (
            losses.load_balancing_loss,
            {"router_probs": probs, "expert_index": found.expert_index},
        ),
        "sequence_balancing_loss": (
            losses.sequence_balancing_loss,
            {
                "router_probs": probs,
                "token_index": found.token_index,
                "expert_index": found.expert_index,
                "num_sequences": 2,
            },
        ),
        "balancing_loss": (
            losses.balancing_loss,
            {"kind": "per_sequence", "assignment": found, "sequence_length": 3},
        ),
        "load_loss": (
            losses.load_loss,
            {
                "router_logits": logits,
                "noisy_logits": logits,
                "noise_std": 0.5,
                "top_k": 2,
            },
        ),
        "local_entropy_loss": (losses.local_entropy_loss, of_modality),
        "global_entropy_loss": (
            losses.global_entropy_loss,
            {**of_modality, "threshold": 0.5},
        ),
        "uncertainty_weighted_loss": (
            losses.uncertainty_weighted_loss,
            {
                "task_losses": [1.0, 2.0],
                "log_variances": np.zeros(2, "float32"),
                "kinds": ["regression", "classification"],
            },
        ),
        "expert_load": (metrics.expert_load, pairs),
        "expert_load_by_group": (
            metrics.expert_load_by_group,
            {
                **pairs,
                "token_index": found.token_index,
                "group": modality,
                "num_groups": 2,
            },
        ),
        "fraction_dropped": (
            metrics.fraction_dropped,
            {**pairs, "kept_expert_index": found.expert_index},
        ),
        "contrastive_loss": (
            training.contrastive_loss,
            {"first": logits, "second": logits + 1, "temperature": 0.1},
        ),
        "adversarial_step": (
            training.adversarial_step,
            {"gradient": logits, "epsilon": 1.0},
        ),
    }
