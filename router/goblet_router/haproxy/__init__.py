"""HAProxy in the router's place: the same ring, written down as maps that HAProxy reads.

`settings` says how, `placement` is what must be written down, `render` makes files of it, and
`files` puts them on disk. `runtime` speaks to a running HAProxy, `reconcile` brings it to a
placement, `following` knows which that is now, and `sync` does so at each change. `commands`
are the commands of `goblet haproxy`.
"""
