"""The only place with privileged or odd system calls."""
