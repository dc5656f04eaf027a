"""A run: the files that training leaves in its folder, and the code that reads them."""
