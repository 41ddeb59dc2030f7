"""Learning about the own NAT: discovery (pure), judging and predicting its mappings."""
