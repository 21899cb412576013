"""Who may do what: `--auth`. Shared by both ports; it knows neither gRPC nor HTTP."""
