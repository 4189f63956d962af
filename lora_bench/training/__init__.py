"""From cells to what becomes of them: load the encoder and the data, train a pack, go on from what was saved."""
