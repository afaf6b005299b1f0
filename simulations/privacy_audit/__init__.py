"""Audit the privacy mechanism that a site runs, against what the study claims of it."""
