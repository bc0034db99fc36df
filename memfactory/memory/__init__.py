"""What an agent knows, as values: the bank and its operations, embedders, exact search. Knows no model, no prompt and no reward."""
