"""Bytes to values and back, one format a file. Pure: no I/O, no clock, no randomness."""
