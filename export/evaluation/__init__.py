"""How well a model answers: scores, calibration, figures."""
