"""What `make bench` measures: this package against what a user would otherwise write."""
