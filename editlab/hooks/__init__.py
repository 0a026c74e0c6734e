"""The shared hooks layer: named sites of an unmodified Hugging Face model, read and written exactly.

Start with `sites.py` for the names, `session.py` for how to use them, `cone.py` for the repeated small
change, and `detect.py` for how a model's parts are found. Imports nothing else of editlab but errors.
"""
