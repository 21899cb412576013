"""The HTTP port: metrics, probes, REST and the page."""
