"""One training step of a real shape with random weights, on whatever device there is, beside its limit."""
