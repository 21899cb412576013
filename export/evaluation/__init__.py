"""How well a model answers: scores, calibration, figures, and the gates of an export."""
