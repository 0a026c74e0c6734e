"""How every figure looks: colours, dashes, markers."""

from __future__ import annotations

# Okabe and Ito's colours that stand out on light and on dark; every series also has a dash and a marker of its own.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
MARKERS = ("circle", "square", "diamond", "cross", "triangle-up", "x")
