"""`docs/performance.md` from what the benchmarks kept."""
