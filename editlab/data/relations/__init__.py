"""Facts by relation, with phrasings and counterfactuals."""

from editlab.data.relations.table import Relation, RelationRow, fill, place, relation, relations

__all__ = ["Relation", "RelationRow", "fill", "place", "relation", "relations"]
