"""Records of finished cells: their schema, the folder, archive and table that hold them, and how files are written."""
