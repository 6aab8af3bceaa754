"""Hold the estimated costs of layouts."""

from typing import NamedTuple


class Estimate(NamedTuple):
    """Hold a layout and the cost of a training step on each of its devices.

    Attributes:
        data, expert, model: Number of devices along each axis of the mesh.
        parameters: Number of parameters.
        state_bytes: Bytes of weights, gradients, and optimizer slots.
        activation_bytes: Bytes of activations at the peak of the step.
        all_to_all_bytes: Bytes that are sent to other devices to bring rows to
            their experts and back.
        all_reduce_bytes: Bytes that are sent to sum gradients and parts of F.

    Example:

    ```python
    config = keras_moe.distribution.PlanConfig(
        tokens=4096, hidden_dim=512, intermediate_dim=2048, num_experts=8
    )
    cost = keras_moe.distribution.estimate(config, data=2, expert=4)
    print(cost.memory_bytes, cost.sent_bytes)
    ```
    """

    data: int
    expert: int
    model: int
    parameters: int
    state_bytes: int
    activation_bytes: int
    all_to_all_bytes: int
    all_reduce_bytes: int

    @property
    def memory_bytes(self) -> int:
        """Bytes of the state and the activations."""
        return self.state_bytes + self.activation_bytes

    @property
    def sent_bytes(self) -> int:
        """All bytes that a device sends in a step."""
        return self.all_to_all_bytes + self.all_reduce_bytes

    @property
    def layout(self) -> dict[str, int]:
        """The layout as arguments of `expert_parallel`."""
        return {
            "data": self.data,
            "expert": self.expert,
            "model": self.model,
        }


class Plan(NamedTuple):
    """Hold the best layout and all others that were compared.

    Attributes:
        best: The best `Estimate`.
        estimates: List of all, the best first. Those that need too much memory
            come last.

    Example:

    ```python
    config = keras_moe.distribution.PlanConfig(
        tokens=4096, hidden_dim=512, intermediate_dim=2048, num_experts=8
    )
    for cost in keras_moe.distribution.plan(config, devices=8).estimates:
        print(cost.layout, cost.sent_bytes)
    ```
    """

    best: Estimate
    estimates: list[Estimate]
