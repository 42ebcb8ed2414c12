"""Adapters in the forms that other engines read, from files alone: no base model is opened, torch is not loaded.

`exporters` holds the registry, each engine has a file of its own, `export` is the door.
"""
