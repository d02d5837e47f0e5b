"""What router and node must agree about, and nothing else.

A raw request target passes git_route (which endpoint, which repository), which
asks repo_key (the one canonical name); ring turns that name into a slot and the
slot into owners. contract names the headers and states that travel between the
two; settings gives both the same order of flags, environment and file; serve
puts either behind hypercorn with the same limits, linger lets a refusal arrive
although its request was not read to the end, and asgi holds the few words of ASGI
that both speak.
"""
