"""Runtimes: each emits, loads, runs and times models, and says what it really ran."""
