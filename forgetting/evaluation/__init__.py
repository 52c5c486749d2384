"""Evaluation: lm-evaluation-harness on a run, a model folder or a hub model → `results.json`."""
