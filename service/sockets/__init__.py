"""What a port listens on: addresses, unix sockets, and which hosts are this machine."""
