"""Algorithm 1 of the paper, all of it: scores, selection, objective, steps."""
