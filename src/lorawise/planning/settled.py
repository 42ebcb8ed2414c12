"""All deciders in their order: the adapter's first, then the run's.

A decider registers itself when its module is loaded; this is the one place that loads both.
"""

from lorawise.planning import adapter_deciders, training_deciders
from lorawise.planning.deciders import decide
from lorawise.planning.situation import Settled, Situation

LOADED = (adapter_deciders, training_deciders)


def decide_all(situation: Situation) -> Settled:
    """Every decision that needs no memory prediction."""
    return decide(situation)
