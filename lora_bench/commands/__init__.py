"""What `cli.py` calls: options declared once, the smaller commands, and what commands print.

`options` choose cells; `outward` and `upkeep` are commands; `summaries`, `progress` and `diagnosis` are what others
show, `tables` fits it to a terminal or a pipe, `output` keeps it from ending the work; `paths` expands `~`; `caches`
says where this machine's tokens and measurements are kept.
"""
