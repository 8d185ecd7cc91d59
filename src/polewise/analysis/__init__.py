"""Numbers about a trained model, then figures."""

from polewise.analysis.figures import write_figures as write_figures
from polewise.analysis.learning_curve import LearningCurve as LearningCurve
from polewise.analysis.learning_curve import learning_curve as learning_curve
from polewise.analysis.placed_filters import PlacedFilters as PlacedFilters
from polewise.analysis.placed_filters import placed_filters as placed_filters
from polewise.analysis.published import PUBLISHED as PUBLISHED
from polewise.analysis.published import PublishedTable as PublishedTable
from polewise.analysis.study_report import render_html as render_html
from polewise.analysis.study_report import render_markdown as render_markdown
from polewise.analysis.study_report import study_section as study_section
