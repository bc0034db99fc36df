"""MemFactory: write a memory agent as the paper's pseudo-code for one example; train, evaluate and serve it with that same code."""
