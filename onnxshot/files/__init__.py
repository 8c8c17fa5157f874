"""Which files a run reads and which it writes, and whose those are that are there: nothing of the user's is lost."""
