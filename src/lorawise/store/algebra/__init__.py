"""The algebra of adapters on files alone: no base model, no torch, one module in memory at a time."""
