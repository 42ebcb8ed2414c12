"""`lorawise tune` by halving beside one whole run, the whole grid, and settings tried one at a time."""
