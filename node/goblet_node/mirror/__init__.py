"""A mirror on disk: the pack log, its table of objects, its refs. Knows no network.

store finds, changes and recovers mirrors (layout: where they lie; lock: for one
process alone; turns: for one thread at a time; commit and manifest: what a change will
be, as values; durable: how it comes to the disk; recovery: after a crash; view: a
manifest as a Mirror). leases are who reads what, usage is what mirrors take and when
they were used, budget what has to go when there is no room. adopt checks a mirror that
another node gave, and makes it one of ours. guest reads a mirror from a second
process. log is one mirror: segments and generations. refs is the file of one
generation's refs. disk holds every fsync and rename.

intake turns a received pack into a segment, in a worker process: scan finds and
checks its entries (window and bases read it), normalise drops what the log has,
table lists the rest (id_index finds an id in it), linking writes what each of those
refers to (links are the file, graph the whole log by it), reach says which tips no ref
reaches any more. reader reads objects of the log; concat and export make one ordinary
pack and repository of it.
merge joins segments when there are many, wear says when a log is to be made anew.
"""
