"""The frozen encoder: its layers on windows, how they are checked, and the weights that adapters can be put on."""
