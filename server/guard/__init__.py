"""The guard: the only port that hospitals reach."""
