"""The gRPC port: two transports, the servicers, and their messages on the wire."""
