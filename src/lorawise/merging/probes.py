"""What is asked to compare two models: the same few texts every time, and how far apart their answers are.

    kl = mean over all positions of all probes of Σ p · (log p − log q)      p the reference, q the other; nats

The probes are plain sentences of several kinds, through the model's own tokenizer; no template, so that base models
and chat models are asked alike.
"""

import torch
from torch import Tensor

from lorawise.data.tokenizer import ChatTokenizer

PROBES = (
    "The capital of France is Paris, and the river that runs through it is the",
    "Dear customer, thank you for your message. We are sorry to hear that your order has not arrived",
    'def add(a, b):\n    """Return the sum of a and b."""\n    return a +',
    '{"name": "Ada", "items": [{"sku": "K-12", "count": 2}], "total":',
    "Patient presents with a persistent cough and mild fever. Recommended treatment:",
    "Pursuant to section 4 of this agreement, the tenant shall not sublet the premises without",
    "Q: If a train leaves at 3 pm and travels 120 km at 60 km/h, when does it arrive?\nA:",
    "Es war einmal ein König, der hatte eine Tochter, die war so schön, dass",
)
LONGEST = 128  # tokens of one probe


def probe_ids(tokenizer: ChatTokenizer, texts: tuple[str, ...] = PROBES) -> list[list[int]]:
    """Token ids of each probe, at least two and at most `LONGEST`."""
    found = [[int(i) for i in tokenizer.encode(text, bos=True)[0]][:LONGEST] for text in texts]
    return [ids for ids in found if len(ids) >= 2]


@torch.no_grad()
def logits(model: torch.nn.Module, probes: list[list[int]]) -> list[Tensor]:
    """Of every probe (t, vocabulary), in float32 on the CPU."""
    device = next(model.parameters()).device
    return [model(input_ids=torch.tensor([ids], device=device)).logits[0].float().cpu() for ids in probes]


def divergence(reference: list[Tensor], other: list[Tensor]) -> float:
    """KL(reference ‖ other), the mean over all positions, in nats; never below 0."""
    total, positions = 0.0, 0
    for p, q in zip(reference, other, strict=True):
        log_p, log_q = p.double().log_softmax(-1), q.double().log_softmax(-1)
        total += float((log_p.exp() * (log_p - log_q)).sum())
        positions += len(p)
    return max(0.0, total / positions)


def largest_difference(reference: list[Tensor], other: list[Tensor]) -> float:
    """max |Δ logit| over all probes."""
    return max(float((p - q).abs().max()) for p, q in zip(reference, other, strict=True))
