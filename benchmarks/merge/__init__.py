"""Merging on disk beside PEFT's merge_and_unload and save_pretrained: time, peak memory, error against float64."""
