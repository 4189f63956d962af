"""Which cells run: config files (`config`, `plain_yaml`), the cells and packs that they and the options make (`cells`),
what of it runs and why (`plan`), and the rates that a search found (`choose`). No torch.
"""
