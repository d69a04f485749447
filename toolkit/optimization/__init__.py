"""Part one of the book: how stochastic gradients find a minimum, and what slows them."""
