"""One file per layout: what lies in a folder, and whose and of which class each scan is."""
