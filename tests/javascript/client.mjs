// Runs isomorphic-git once: `node client.mjs clone|fetch '{"dir": ..., "url": ..., ...}'`.
// The words of the wish are isomorphic-git's own; `since` is in seconds since the epoch.
import fs from 'node:fs'
import git from 'isomorphic-git'
import http from 'isomorphic-git/http/node'

const [command, wish] = process.argv.slice(2)
const asked = JSON.parse(wish)
if (asked.since !== undefined) asked.since = new Date(asked.since * 1000)
await git[command]({ fs, http, ...asked })
