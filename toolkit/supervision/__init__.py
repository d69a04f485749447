"""Part two of the book: what labels teach, when they are wrong, soft, or their images changed."""
