"""What every surface shares of a request: who sends it, the bytes that it holds, its turn, and its phases."""
