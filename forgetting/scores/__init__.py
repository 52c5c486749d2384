"""Two models' nll of every response token, the store that keeps them, and the cut into positive and negative."""
