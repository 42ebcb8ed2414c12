"""Adapters on fused experts: a step of ours beside PEFT's `target_parameters`."""
