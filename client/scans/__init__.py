"""From a hospital's files to checked tensors."""
