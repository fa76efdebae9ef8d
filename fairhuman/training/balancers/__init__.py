"""What turns the objectives' gradients into one step."""
