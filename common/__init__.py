"""What server and sites must agree on. Imports nothing above itself."""
