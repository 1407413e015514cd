"""From a model source to named host tensors."""
