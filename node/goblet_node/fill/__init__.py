"""Where bytes come from.

upstream speaks smart HTTP to the origin (hosts: which URLs it may ask; connections
and reading: how it is asked and its answers are read; failures: what may go wrong;
grants: whom it let read what).
refs asks what the refs are, refresh brings a mirror up to date: both once per
repository however many wait (flights). receive fetches a pack, has it indexed and
commits it; spool is a file that grows while many read it (spool_file: the file),
scratch a folder for one task's work. room is what all of them claim before they
write. copying brings mirrors from other members of the cluster instead (peers: what those
are asked; transfer: one mirror on its way; pace: how fast; taking: what is handed over).
tidy joins and renews the logs of mirrors when it is quiet, niced how.
"""
