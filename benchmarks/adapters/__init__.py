"""Combine and resize beside PEFT and a dense SVD: time beside time, error beside error."""
