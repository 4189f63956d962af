"""The forecast of what packs will cost before anything runs: their seconds and their memory.

geometry.py  the sizes of an encoder
demand.py    what a pack's adapters ask of a device, counted from shapes
cost.py      seconds and bytes, from those counts and a device's coefficients
schedule.py  how several devices share packs
"""
