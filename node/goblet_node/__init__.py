"""A cache node: mirror repositories and answer `git clone` and `git fetch` from them.

A request passes app -> access (may this caller read it? asked upstream) ->
wire (what is asked) -> serve.plan (how it will be answered) -> serve.answer
(the bytes). fill brings bytes from upstream, mirror keeps them as a pack log.
cluster takes the node through its life among others.
Each room stands only on those below it: app, cluster, access, serve, fill, mirror,
objects, wire. cli is the only wiring, with what it builds in wiring and clustering.
"""
