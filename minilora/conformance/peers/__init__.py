"""Implementations of LoRA seen through the interface: minilora's own, and those of libraries."""
