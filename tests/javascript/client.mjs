// Runs isomorphic-git: each line of stdin is `["clone" or "fetch", {"dir": ..., "url": ..., ...}]`,
// and is answered by a line, `null` or what went wrong, as JSON. Ends with stdin.
// The words of the wish are isomorphic-git's own; `since` is in seconds since the epoch.
import fs from 'node:fs'
import nodeHttp from 'node:http'
import readline from 'node:readline'
import git from 'isomorphic-git'
import http from 'isomorphic-git/http/node'

// A kept connection may be closed by its server between two lines.
nodeHttp.globalAgent = new nodeHttp.Agent({ keepAlive: false })

for await (const line of readline.createInterface({ input: process.stdin })) {
  const [command, asked] = JSON.parse(line)
  if (asked.since !== undefined) asked.since = new Date(asked.since * 1000)
  const failure = await git[command]({ fs, http, ...asked }).then(() => null, (error) => error.stack)
  console.log(JSON.stringify(failure))
}
