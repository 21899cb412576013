"""`convoy walkthrough`: what every layer of a network computes for one picture, as a web page."""
