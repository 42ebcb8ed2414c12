"""What is there whatever the batch: weights, adapters, gradients that are kept, the optimizer's moments."""

from collections.abc import Iterator

from lorawise.facts.model import Matrix, ModelFacts
from lorawise.facts.targets import selected, trained_in_full
from lorawise.lora.config import LoraConfig
from lorawise.planning.memory.model import Method, Stack
from lorawise.planning.memory.tape import Buffer, Tape

BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "float8_e4m3fn": 2, "uint8": 2, "int8": 2}
NF4_BLOCK, ABSMAX_BLOCK = 64, 256  # bitsandbytes' block sizes: weights an absmax, absmaxes an absmax of theirs
PAGED_FROM = 100_000  # elements from which PagedAdamW8bit keeps a tensor's moments in managed memory

WEIGHTS, CONSTANTS, ADAPTERS, GRADIENTS, MOMENTS = (
    "base weights",
    "quantisation constants",
    "adapters",
    "gradients",
    "optimizer moments",
)


def compute_bytes(facts: ModelFacts) -> int:
    """Bytes of a value the base computes in; a checkpoint quantised on disk is opened in 16 bits."""
    return BYTES.get(facts.dtype, 2)


def is_packed(matrix: Matrix, facts: ModelFacts, method: Method) -> bool:
    """Whether a 4-bit base holds this matrix in NF4: linear layers but the head."""
    return method == "qlora" and matrix.kind == "linear" and matrix not in facts.heads


def weights(tape: Tape, facts: ModelFacts, method: Method, stack: Stack) -> Iterator[Buffer]:
    """Every parameter of the base; a tied head is the embedding."""
    narrow = compute_bytes(facts)
    wide = 4 if method == "qlora" and stack.upcast == "all" else narrow
    for matrix in facts.matrices:
        if facts.tied and matrix in facts.heads:
            continue
        if is_packed(matrix, facts, method):
            if stack.packing == "int8":
                yield tape.buffer(matrix.weights, WEIGHTS)
                yield tape.buffer(4 * matrix.out_features, CONSTANTS)
                continue
            yield tape.buffer(-(-matrix.weights // 2), WEIGHTS)
            yield from _constants(tape, matrix.weights, stack)
        else:
            yield tape.buffer(matrix.weights * wide, WEIGHTS)
        if matrix.bias:
            yield tape.buffer(matrix.experts * matrix.out_features * wide, WEIGHTS)
    for parameter in facts.others:
        yield tape.buffer(parameter.size * (4 if method == "qlora" and stack.upcast != "none" else narrow), WEIGHTS)


def _constants(tape: Tape, size: int, stack: Stack) -> Iterator[Buffer]:
    blocks = -(-size // NF4_BLOCK)
    yield tape.buffer(16 * 4, CONSTANTS)
    if stack.double_quant:
        yield tape.buffer(blocks, CONSTANTS)
        yield tape.buffer(4 * -(-blocks // ABSMAX_BLOCK), CONSTANTS)
        yield tape.buffer(256 * 4, CONSTANTS)
        yield tape.buffer(4, CONSTANTS)
    else:
        yield tape.buffer(4 * blocks, CONSTANTS)


def adapter_sizes(facts: ModelFacts, config: LoraConfig) -> dict[str, tuple[int, int]]:
    """Elements of A and of B, by matrix."""
    ranks = {m.name: m.experts * config.rank_of(m.name) for m in selected(facts, config)}
    return {
        name: (r * facts.matrix(name).in_features, r * facts.matrix(name).out_features) for name, r in ranks.items()
    }


def our_state(tape: Tape, facts: ModelFacts, config: LoraConfig, slots: int) -> Iterator[Buffer]:
    """BankAdamW's flat buffers, one of each for A, for B and for what is trained in full: values, what backward adds
    to, two moments; for several slots the gradients once more, slot after slot."""
    sizes = adapter_sizes(facts, config).values()
    sides = [4 * slots * sum(size[side] for size in sizes) for side in (0, 1)]
    for width in filter(None, (*sides, 4 * sum(size for _, size in trained_in_full(facts, config)))):
        yield tape.buffer(width, ADAPTERS)
        yield tape.buffer(width, GRADIENTS)
        if slots > 1:
            yield tape.buffer(width, GRADIENTS)
        yield tape.buffer(width, MOMENTS)
        yield tape.buffer(width, MOMENTS)


def stock_state(tape: Tape, facts: ModelFacts, config: LoraConfig | None, stack: Stack) -> Iterator[Buffer]:
    """Adapters in fp32 a tensor at a time (none for full fine-tuning), whole modules as PEFT copies them, in the
    weights' type, and the moments of what trains."""
    if config is None:
        e = compute_bytes(facts)
        sizes = [(m.weights, e) for m in facts.matrices if not (facts.tied and m in facts.heads)]
        sizes += [(m.experts * m.out_features, e) for m in facts.matrices if m.bias]
        sizes += [(parameter.size, e) for parameter in facts.others]
    else:
        sizes = [(size, 4) for pair in adapter_sizes(facts, config).values() for size in pair]
        sizes += [(size, compute_bytes(facts)) for _, size in trained_in_full(facts, config)]
        for size, width in sizes:
            yield tape.buffer(width * size, ADAPTERS)
    for size, width in sizes:
        for _ in range(2):
            if stack.optimizer != "paged-8bit":
                yield tape.buffer(width * size, MOMENTS)
                continue
            if size < PAGED_FROM:
                yield tape.buffer(size, MOMENTS)
            yield tape.buffer(4 * -(-size // 256), MOMENTS)
