"""The adapters of a pack: the factors that its cells train, and the operands that the encoder reads."""
