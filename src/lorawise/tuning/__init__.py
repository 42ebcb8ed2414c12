"""Many settings over one base: ask, train side by side, measure, eliminate, keep the best. See `study` and `events`."""
