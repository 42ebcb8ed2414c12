"""Why there are that many bytes: the formula of each cause, in words and with this step's numbers."""

from typing import TYPE_CHECKING

from lorawise.planning.memory import loss, static

if TYPE_CHECKING:
    from lorawise.planning.memory.step import Step


def because(step: "Step") -> dict[str, str]:
    facts, n = step.facts, step.numbers
    kept = {
        "speed": f"all {facts.num_layers} layers",
        "balanced": "every second layer, and the one computed again",
        "frugal": "the one layer computed again",
    }[step.mode]
    rank = "" if step.config is None else f"r {step.config.r}"
    return {
        static.WEIGHTS: _weights(step),
        static.CONSTANTS: "one fp32 scale a row"
        if step.stack.packing == "int8"
        else "one scale for each 64 weights: "
        + ("8 bits, and fp32 for each 256 of those" if step.stack.double_quant else "fp32"),
        static.ADAPTERS: f"A and B of {len(step.ranks)} matrices at {rank} in fp32" + _slots(step),
        static.GRADIENTS: "of every parameter, in the weights' type"
        if step.method == "full"
        else "of the adapter only, in fp32: the base is frozen" + _slots(step),
        static.MOMENTS: "the two of AdamW for every trained value"
        + _slots(step)
        + (", 8 bits, the large ones paged" if step.stack.optimizer == "paged-8bit" else ""),
        "adapters in 16 bits": "the copies of A and s·B that products read, kept for backward",
        "attention": f"queries, keys, values, what attention gave and its normalisers, {n.tokens:,} tokens of {kept}",
        "feed-forward": f"gate, its activation, up and their product, {n.tokens:,} tokens of {kept}",
        "norms": f"each norm's input in fp32, and what it gave, {n.tokens:,} tokens of {kept}",
        "hidden states": "what goes from layer to layer, and the tables of positions",
        loss.LOGITS: _loss(step),
        "gradients of activations": "on their way back through the layer at work",
        "kernel workspace": "flash attention's backward: fp32 sums of dq, and dk and dv for every query head",
        "attention masks": "padded rows: a 16-bit square of the length for each row and layer",
        "dequantised weights": "the one matrix that is multiplied now, in 16 bits",
        "cuBLAS workspace": "taken once by each thread that multiplies, two of them: 8 MiB, from Hopper on 32",
        "foreach temporaries": "a copy of everything that is updated, while it is",
    }


def _weights(step: "Step") -> str:
    facts = step.facts
    if step.method != "qlora":
        return f"{facts.parameters:,} parameters in {facts.dtype}"
    wide = {"none": facts.dtype, "norms": f"{facts.dtype}, norms in fp32", "all": "fp32"}[step.stack.upcast]
    packed = "NF4, half a byte" if step.stack.packing == "nf4" else "int8, a byte"
    return f"linear layers in {packed} a weight; embedding, head and norms in {wide}"


def _slots(step: "Step") -> str:
    return f", {step.slots} slots" if step.slots > 1 else ""


def _loss(step: "Step") -> str:
    V = step.facts.vocab_size
    if step.ours:
        return (
            f"logits of one chunk of positions at a time ({V:,} each), their gradient, and the hidden states' gradient"
        )
    return f"logits of {step.numbers.tokens:,} tokens × {V:,}: log-softmax and two gradients in fp32"
