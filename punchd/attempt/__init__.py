"""One hole punching attempt: the rounds (pure machine), what drives them, what a technique may do."""
