"""What an edit did: questions asked of a model before and after, and numbers that carry their definition.

questions -> scorer -> metrics -> statistics -> results
"""
