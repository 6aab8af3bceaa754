"""Floor 4: callbacks that report what the routers do and warn of imbalance."""

from keras_moe.callbacks.balance_guard import BalanceGuard
from keras_moe.callbacks.routing_metrics import RoutingMetrics
from keras_moe.model_surgery.find import find_blocks

__all__ = ["BalanceGuard", "RoutingMetrics", "find_blocks"]
