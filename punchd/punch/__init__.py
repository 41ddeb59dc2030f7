"""What the tool `punch` is made of: calls between two programs that meet at a rendezvous server.

| files | what |
|---|---|
| messages, records | pure: the signals of a call; what goes through TLS |
| moves, calls, admission | pure: both sides of a call; which calls a listener takes up |
| settings, target, news, outcomes | pure: what it is told, what it tells, how it ends |
| keys, tls | the own key; TLS 1.3 with the key of an address pinned |
| mail, holes, conductor, hole | signals of all calls; the daemon's attempts; one call; what comes of it |
| sockets, stdio, relay, datagrams, talk | bytes to and fro |
| meeting, connector, forward, listener, commands | the commands |
"""
