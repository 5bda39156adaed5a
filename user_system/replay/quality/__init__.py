"""How good recorded data are to learn from: what ``user-system replay report`` shows.

``survey`` reads a store once and keeps counts and bounded random samples; ``space`` says which
recorded steps are alike; ``measures`` compares those; ``findings`` says what stands out; ``report``
puts it together. Pure NumPy, on executed actions and low-dimensional observations; no images.
"""

from user_system.replay.quality.options import Options
from user_system.replay.quality.report import Report, examine

__all__ = ["Options", "Report", "examine"]
