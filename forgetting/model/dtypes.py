from typing import Literal

DType = Literal["float32", "bfloat16", "float16", "float64"]
"""Of a model's weights in memory."""
