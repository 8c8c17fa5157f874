"""How files come to their places: aside first, then in one step, so that a reader finds the old or the new whole."""
