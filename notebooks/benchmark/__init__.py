"""What `make bench` measures: this package against what a user would otherwise write.

`bench` holds what all parts share and `peer` what they are compared with. The parts (`training`,
`ranking`, `server`, `growth`) give tidy frames of repeated runs, timed in turn by `timing`;
`comparisons` makes them the rows of one table. `child` measures in a process of its own.
"""
