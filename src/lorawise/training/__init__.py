"""A plan becomes an adapter: loop, optimizer, schedule, checkpoints, preflight, evaluation."""
