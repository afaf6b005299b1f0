"""Tables, plots and pages: every result medfed shows is written through here."""
