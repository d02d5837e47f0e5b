"""Where bytes come from.

upstream speaks smart HTTP to the origin and maps every failure; spool is a file
that grows while many read it; refresh brings a mirror up to date, once per
repository however many wait.
"""
