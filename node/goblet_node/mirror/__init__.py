"""A mirror on disk: the pack log, its table of objects, its refs. Knows no network.

store finds or makes the mirror of a repository and recovers it after a crash;
log is one mirror: segments and generations, named by a manifest; intake turns a
received pack into a segment (normalise drops what the log has; table indexes
what is left; reach says which tips no ref reaches any more) in a worker process;
disk holds every fsync and rename; export writes an ordinary bare repository.
"""
