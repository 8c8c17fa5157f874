"""What may happen to a model: one file per pass; each counts its edits and says what it refused."""
