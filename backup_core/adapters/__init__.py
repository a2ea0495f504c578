"""One Azure service each: values and errors are translated, nothing is decided."""
