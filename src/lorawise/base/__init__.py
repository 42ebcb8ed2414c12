"""What every room stands on: errors, findings, registries, atomic files, digests."""
