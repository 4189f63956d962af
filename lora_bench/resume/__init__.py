"""A results folder that runs are stopped in, go on in and share: signals, packs in mid-training, leases, records.

`signals` asks a run to stop, `states` are packs in mid-training, `leases` say who trains what, an `outcome` is what
became of a cell, the `shelf` has the records, and `standing` says of each cell where it is. No torch.
"""
