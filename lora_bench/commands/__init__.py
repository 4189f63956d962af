"""What `cli.py` calls: options declared once, the smaller commands, and what commands print.

`options` choose cells; `outward` and `upkeep` are commands; `summaries`, `progress` and `diagnosis` are what others
show; `caches` says where this machine's tokens and measurements are kept.
"""
