"""What the tests stand on: a real origin, real git, real processes.

gitcli runs the git command apart from this machine's configuration; repos makes
repositories and changes them. origin is a git host that the tests own (users,
private repositories, a log, faults on cue): backend runs `git http-backend`,
seen reads what a request asks, faults_on_cue says what goes wrong with it,
origin_http and
origin_reply put them behind HTTP. processes starts one router or node, cluster
starts `goblet up`; asks talks to either by hand-made requests.
"""
