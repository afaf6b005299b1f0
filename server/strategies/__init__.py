"""One paper, one file: how updates become the next global model."""
