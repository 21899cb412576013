"""Classifiers that others trained and published, imported and compared with the pipelines of those who wrote them."""
