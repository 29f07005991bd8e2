"""An online trainer in NumPy: events in time order -> sparse features -> a small model -> deltas.

It stands on the public names of `monolith_kv` alone: an application could have written it.
"""

from monolith_kv.trainer.events import EventClock, Events, batch_starts, make_fids
from monolith_kv.trainer.loop import OnlineTrainer, Step
from monolith_kv.trainer.metrics import ProgressiveAuc, auc
from monolith_kv.trainer.model import DenseWeights, FactorizationMachine

__all__ = [
    "DenseWeights",
    "EventClock",
    "Events",
    "FactorizationMachine",
    "OnlineTrainer",
    "ProgressiveAuc",
    "Step",
    "auc",
    "batch_starts",
    "make_fids",
]
