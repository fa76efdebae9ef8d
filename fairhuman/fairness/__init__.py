"""Fair weights for several objectives' gradients, and the step that uses them."""
