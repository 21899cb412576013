"""Models of a Triton repository: what their `config.pbtxt` says, as Convoy serves it."""
