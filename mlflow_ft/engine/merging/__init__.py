"""An adapter folded into its base, tensor by tensor; several adapters made one; a whole model in fewer bits."""
