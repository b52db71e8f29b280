"""Notice what happens in a run, keep it, and decide what to do about it."""
