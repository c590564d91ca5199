"""Real trained speech encoders that install by package name, and what binarizing them costs in words and phones."""
