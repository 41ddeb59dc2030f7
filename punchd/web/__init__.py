"""The HTTP and WebSocket shell of the servers: libraries without I/O under trio. Knows nothing of what is served."""
