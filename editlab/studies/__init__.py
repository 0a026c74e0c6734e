"""Studies: models, methods, settings and seeds crossed into runs, carried out somewhere, and put into one table."""
