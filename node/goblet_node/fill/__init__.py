"""Where bytes come from.

upstream speaks smart HTTP to the origin and maps every failure (hosts: which URLs
it may ask; connections and reading: how it is asked and its answers are read).
refs asks what the refs are, refresh brings a mirror up to date: both once per
repository however many wait (flights). receive fetches a pack, has it indexed and
commits it; spool is a file that grows while many read it, scratch a folder for one
task's work.
"""
