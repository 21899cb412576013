"""`convoy classify` of any number of pictures: where they come from, the rows of their answers, and the folders they go into."""
