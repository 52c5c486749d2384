"""How well a ranking by score separates known noise from clean tokens."""

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import rankdata


def area_under_curve(score: Float[np.ndarray, " n"], is_noise: Bool[np.ndarray, " n"]) -> float:
    """Probability that a noisy element's score is below a clean one's, ties counting half (Mann and Whitney)."""
    num_clean, num_noise = int((~is_noise).sum()), int(is_noise.sum())
    if not num_clean or not num_noise:
        return float("nan")
    above = rankdata(score)[~is_noise].sum() - num_clean * (num_clean + 1) / 2
    return float(above / (num_clean * num_noise))
