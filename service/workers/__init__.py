"""Several server processes: supervisor, workers, what they say to each other, their metrics together."""
