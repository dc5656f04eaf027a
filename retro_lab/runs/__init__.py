"""A run: what training leaves in its folder, and all that reads it again."""
