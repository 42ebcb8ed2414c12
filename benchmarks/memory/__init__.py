"""Predicted memory beside measured, and beside other estimators."""
