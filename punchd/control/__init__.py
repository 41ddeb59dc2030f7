"""The line protocol on the Unix socket: grammar (pure), descriptor passing, quotas, server."""
