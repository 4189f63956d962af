"""Records of finished cells: their schema, the results folder that holds them, its archive, how files are written."""
