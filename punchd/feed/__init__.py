"""`punch media`: files and pipes over the media protocol."""
