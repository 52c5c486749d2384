"""A generated world where every noisy token is known, written as the data and the model that any user would have."""
