"""Base models opened, adapted and run: hub id, folder or GGUF file in; a frozen transformers model out."""
