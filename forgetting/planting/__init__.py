"""Noise of known kinds, planted in real data: what it is measured with whether a score finds noise."""
