"""One Azure service each: values and errors translated, nothing decided."""
