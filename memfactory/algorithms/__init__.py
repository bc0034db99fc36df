"""Pure functions of learning: advantages, credit, packing, log-probs, losses, optimizers. Know no agent, env or file."""
