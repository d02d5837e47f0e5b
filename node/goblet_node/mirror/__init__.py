"""A mirror on disk: the pack log, its table of objects, its refs. Knows no network.

store finds, changes and recovers mirrors (layout: where they lie; lock: for one
process alone; commit and manifest: what a change will be, as values; recovery:
after a crash; view: a manifest as a Mirror). log is one mirror: segments and
generations. refs is the file of one generation's refs. disk holds every fsync and
rename.

intake turns a received pack into a segment, in a worker process: scan finds and
checks its entries (window and bases read it), normalise drops what the log has,
table lists the rest, reach says which tips no ref reaches any more. reader reads
objects of the log; concat and export make one ordinary pack and repository of it.
"""
