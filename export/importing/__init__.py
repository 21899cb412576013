"""Models that others trained: their graph is wrapped into one that takes pixels, and gets a contract."""
