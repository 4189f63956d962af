"""The operations of a training step that have GPU kernels, and their plain implementations."""
