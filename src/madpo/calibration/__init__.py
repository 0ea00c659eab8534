"""What scale a reward model's margins have, and what a method makes of them.

`report` holds the result and needs neither numpy nor torch; `figures` are the formulas, `measure` makes a report of
margins, `plot` draws it.
"""
