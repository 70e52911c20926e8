"""The bundled model `atlas`, the generator of the small world it knows, and its training script."""
