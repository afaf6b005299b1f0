"""The networks a study can name, and how to build them."""
