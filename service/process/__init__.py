"""The process itself: its threads, memory and exits, its logs, and the file that says that it is ready."""
