"""Look over a site's scans before a study begins: for the site's admin, and for nobody else."""
