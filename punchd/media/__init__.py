"""The Media Streaming Protocol of seed 004 over UDP (docs/media.md)."""
