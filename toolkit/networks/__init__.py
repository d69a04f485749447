"""Networks designed for a budget: fast ones by regression, expressive ones without training."""
