"""Swapping, scaling and stacking adapters that are resident: how long each takes and what it allocates."""
