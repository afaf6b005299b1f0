"""How medfed is started: the composition root."""
