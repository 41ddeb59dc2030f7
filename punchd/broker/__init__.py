"""The session broker: Punch protocol 1.0.0, which introduces the two ends of an SRT stream to each other."""
