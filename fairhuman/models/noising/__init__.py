"""How latents are noised, and what a model is to predict of them."""
