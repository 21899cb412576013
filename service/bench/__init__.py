"""The load generator behind `convoy bench`."""
