"""Results files of lm-eval side by side in the paper's layout, with a paired test of every difference."""

from neuronmoe_plugins.comparison.bootstrap import Bootstrap, Test
from neuronmoe_plugins.comparison.compare_runs import compare
from neuronmoe_plugins.comparison.layout import Cell, Comparison, Difference, Model, Row, Verdict

__all__ = ["Bootstrap", "Cell", "Comparison", "Difference", "Model", "Row", "Test", "Verdict", "compare"]
