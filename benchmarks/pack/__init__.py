"""The time of a step against the number of settings side by side."""
