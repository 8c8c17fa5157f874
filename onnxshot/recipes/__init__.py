"""What the user asked for, as values and as files."""
