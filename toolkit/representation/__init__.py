"""Part three of the book: what a network can learn from images and clips without labels."""
