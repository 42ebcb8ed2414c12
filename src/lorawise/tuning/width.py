"""How many settings a study trains side by side: as many as pay (`planning.knee`), and no more than memory holds."""

from lorawise.planning.knee import knee
from lorawise.training.memory import SHARE, bytes_per_token, free_memory
from lorawise.training.setup import Prepared


def slots_of(prepared: Prepared) -> int:
    """A power of two, from the tokens of a micro-batch and what is free on the device now."""
    tokens = prepared.run.train.micro_batch_tokens
    assert isinstance(tokens, int), "settled by `prepare`"
    each = bytes_per_token(prepared.model) * tokens
    slots = knee(tokens, prepared.model.device.type)
    while slots > 1 and slots * each > SHARE * free_memory(prepared.model.device):
        slots //= 2
    return slots
