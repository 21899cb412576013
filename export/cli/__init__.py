"""The commands that the export stage adds to the program `convoy`, one file a command."""
