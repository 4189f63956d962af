"""The packed trainer: K cells trained together over one frozen backbone."""
