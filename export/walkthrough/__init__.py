"""What a network does to one picture, as pictures and a web page."""
