"""The coordinator: decides and averages; never sees a scan."""
