"""Trained cells as files that other tools read: a peft LoRA, a transformers model, a GLUE submission."""
