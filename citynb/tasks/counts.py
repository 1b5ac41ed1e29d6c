from citynb.data import (
    DEMAND_CUTS,
    DEMAND_LEVELS,
    HOURS_PER_WEEK,
    SURPRISE_LEVELS,
    fill_gaps,
    read_counts,
)

__all__ = [
    "DEMAND_CUTS",
    "DEMAND_LEVELS",
    "HOURS_PER_WEEK",
    "SURPRISE_LEVELS",
    "fill_gaps",
    "read_counts",
]
