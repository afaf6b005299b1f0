"""The privacy mechanism, its accounting, and the bound on an update."""
