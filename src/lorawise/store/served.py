"""The adapter ranks that vLLM serves: the values its --max-lora-rank takes."""

SERVED_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


def served_rank(rank: int) -> int | None:
    """The smallest of them that holds `rank`; None beyond the largest."""
    return next((size for size in SERVED_RANKS if size >= rank), None)
