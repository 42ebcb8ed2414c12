"""From files to batches, without torch or transformers: read → split → encode → batches.

Rows are read from files or the hub (`read`), parted so that no example stands on both sides (`split`), turned into ids
with a mask of trained tokens (`encode`), and packed into micro-batches (`batches`).
"""
