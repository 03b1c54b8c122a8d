"""Training: a recipe says what is learned, the loop learns it, the strategy says how much of the network."""
