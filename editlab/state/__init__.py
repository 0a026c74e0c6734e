"""What an editable model's state is made of: weight views over an untouched base, the ledger of deltas, edit packs."""
