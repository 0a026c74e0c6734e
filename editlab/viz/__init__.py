"""Figures: plotly figures from results, and nothing else; a file per capability. They show nothing by themselves."""
