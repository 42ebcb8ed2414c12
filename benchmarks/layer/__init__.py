"""One adapted layer, ours beside a hand-written one and PEFT's."""
