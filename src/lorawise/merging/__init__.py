"""Adapters merged into weights on disk, compared with what they were, and written for other engines.

Everything here works on files, one tensor at a time; only `verify` opens models.
"""
