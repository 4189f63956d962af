"""From configs to cells: config files (`config`, `yaml`, `presets`), the cells and packs that they and the command's
options describe (`cells`), and the learning rates that a search found (`choose`). No torch.
"""
