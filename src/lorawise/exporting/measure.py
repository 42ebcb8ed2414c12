"""‖ΔW_engine − ΔW‖ / ‖ΔW‖ over all modules, on what the files hold, read as the engine reads them."""

import math
from collections.abc import Callable

from lorawise.lora.weights import StoredAdapter
from lorawise.store.algebra.factors import Factors, distance
from lorawise.store.algebra.result import ratio


def error_of(adapter: StoredAdapter, read: Callable[[str], Factors]) -> float:
    """`read` gives the update of a module as the engine computes it, its own scale included."""
    norms, errors = [], []
    for module in adapter.layers:
        wanted = Factors.of(adapter, module)
        norms.append(wanted.norm())
        errors.append(distance(read(module), wanted))
    return ratio(math.hypot(*errors), math.hypot(*norms))
