"""Proposes a schema for a table that nobody has described yet (`recsys-emb data guess`).

sample.py reads the first rows, columns.py and leaks.py look at one column each, label.py and roles.py at all of them,
write.py writes it down with the reasons.
"""
