"""The frozen encoder on windows of whole sequences, with adapters in its matrix products."""
