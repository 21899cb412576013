"""`convoy walkthrough`: what every layer of a network computes for one image, as a web page."""
