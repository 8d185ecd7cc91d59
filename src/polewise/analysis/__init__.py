"""Numbers about a trained model, then figures."""

from polewise.analysis.figures import write_figures as write_figures
from polewise.analysis.learning_curve import LearningCurve as LearningCurve
from polewise.analysis.learning_curve import learning_curve as learning_curve
from polewise.analysis.placed_filters import PlacedFilters as PlacedFilters
from polewise.analysis.placed_filters import placed_filters as placed_filters
