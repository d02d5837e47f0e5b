"""What the tests stand on: a real origin, real git, real processes.

gitcli runs the git command apart from this machine's configuration; repos, rich and
histories make repositories and change them. origin is a git host that the tests own
(users, private repositories, a log, faults on cue): backend runs `git http-backend`,
seen reads what a request asks, faults_on_cue says what goes wrong with it,
origin_http and origin_reply put them behind HTTP. processes starts one router or
node, cluster starts `goblet up`, stand an origin with a node before it; asks talks
to any of them by hand-made requests, clients by other people's git clients. compare
and holders judge what they got.

For single rooms: packs, mirrors, faults and committer for the mirror; upload_pack,
host, loopback, dialects, ancestry, strategies and fuzz for the wire; router and unruly for the
router.
"""
