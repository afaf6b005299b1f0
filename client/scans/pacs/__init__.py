"""Pull scans from a hospital's archive. Always as the one who asks: no port is ever opened."""
